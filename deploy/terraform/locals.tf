data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

data "aws_region" "current" {}

locals {
  name = "workflow-secrets-${var.environment}"
  tags = merge(var.tags, { "workflow-secrets:environment" = var.environment })

  oidc_issuer = element(split(":oidc-provider/", var.oidc_provider_arn), 1)

  # The policies are those of deploy/aws, with what is to be replaced there replaced: two
  # that say the same would not do so for long.
  key_policy = replace(replace(replace(
    file("${path.module}/../aws/kms-key-policy.json"),
    "\"arn:aws:iam::111122223333:role/kms-administrator\"", jsonencode(var.key_administrators)),
    "arn:aws:iam::111122223333:role/workflow-secrets", aws_iam_role.service.arn),
    "\"production\"", jsonencode(var.environment)
  )

  role_policy = replace(replace(
    file("${path.module}/../aws/iam-policy.json"),
    "arn:aws:kms:eu-west-1:111122223333:key/00000000-0000-0000-0000-000000000000", aws_kms_key.data_keys.arn),
    "\"production\"", jsonencode(var.environment)
  )

  trust_policy = replace(replace(replace(
    file("${path.module}/../aws/trust-policy.json"),
    "arn:aws:iam::111122223333:oidc-provider/oidc.eks.eu-west-1.amazonaws.com/id/EXAMPLE", var.oidc_provider_arn),
    "oidc.eks.eu-west-1.amazonaws.com/id/EXAMPLE", local.oidc_issuer),
    "system:serviceaccount:workflow-secrets:workflow-secrets", "system:serviceaccount:${var.service_account.namespace}:${var.service_account.name}"
  )

  # The rights of deploy/redis-rights.acl, and those it names for a cluster. New users have
  # no keys, channels or commands: what takes those away is left out, as AWS knows some of
  # it only.
  rights = one([
    for line in split("\n", file("${path.module}/../redis-rights.acl")) : trimspace(line)
    if trimspace(line) != "" && !startswith(line, "#")
  ])
  access_string = replace(
    "on ${local.rights} +cluster|info +cluster|slots +cluster|getkeysinslot +asking",
    "resetkeys resetchannels -@all ~workflow-secrets:*", "~workflow-secrets:* resetchannels -@all"
  )

  elasticache = var.store == "elasticache"
  durable     = !local.elasticache || var.durability == "sync"
  node_type   = coalesce(var.node_type, local.elasticache ? "cache.r7g.large" : "db.r7g.large")
}
