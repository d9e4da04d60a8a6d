# terraform test: what the module plans, with nothing of AWS asked.
mock_provider "aws" {
  override_during = plan

  mock_data "aws_caller_identity" {
    defaults = { account_id = "444455556666" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws", dns_suffix = "amazonaws.com" }
  }
  mock_data "aws_region" {
    defaults = { region = "eu-central-1" }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::444455556666:role/workflow-secrets-staging", id = "workflow-secrets-staging" }
  }
  mock_resource "aws_kms_key" {
    defaults = { arn = "arn:aws:kms:eu-central-1:444455556666:key/0190b1d2-7c3e-4000-8000-000000000000" }
  }
  mock_resource "aws_elasticache_replication_group" {
    defaults = { configuration_endpoint_address = "clustercfg.staging.example.cache.amazonaws.com" }
  }
  mock_resource "aws_memorydb_cluster" {
    defaults = { cluster_endpoint = [{ address = "clustercfg.staging.example.memorydb.amazonaws.com", port = 6379 }] }
  }
}

variables {
  environment               = "staging"
  key_administrators        = ["arn:aws:iam::444455556666:role/security", "arn:aws:iam::444455556666:role/break-glass"]
  oidc_provider_arn         = "arn:aws:iam::444455556666:oidc-provider/oidc.eks.eu-central-1.amazonaws.com/id/0123ABCD"
  service_account           = { namespace = "secrets", name = "service" }
  vpc_id                    = "vpc-0123456789abcdef0"
  subnet_ids                = ["subnet-0123456789abcdef0", "subnet-0123456789abcdef1"]
  client_security_group_ids = { nodes = "sg-0123456789abcdef0" }
  store_password            = "0123456789abcdef0123456789abcdef"
}

run "policies_are_those_of_deploy_aws_with_these_names" {
  command = plan

  assert {
    condition     = !strcontains("${local.key_policy}${local.role_policy}${local.trust_policy}", "111122223333")
    error_message = "A name of the example is left."
  }
  assert {
    condition     = !strcontains("${local.key_policy}${local.role_policy}", "production")
    error_message = "The environment of the example is left."
  }
  assert {
    condition     = tolist(jsondecode(aws_kms_key.data_keys.policy).Statement[0].Principal.AWS) == var.key_administrators
    error_message = "Administrators."
  }
  assert {
    condition     = jsondecode(aws_kms_key.data_keys.policy).Statement[1].Principal.AWS == aws_iam_role.service.arn
    error_message = "Who uses the key."
  }
  assert {
    condition     = jsondecode(aws_kms_key.data_keys.policy).Statement[1].Condition.StringEquals["kms:EncryptionContext:environment"] == "staging"
    error_message = "The environment in the key's policy."
  }
  assert {
    condition = jsondecode(aws_iam_role_policy.service.policy).Statement[0] == {
      for name, value in merge(
        jsondecode(aws_kms_key.data_keys.policy).Statement[1], { Resource = aws_kms_key.data_keys.arn }
      ) : name => value if name != "Principal"
    }
    error_message = "The role's policy and the key's say different things."
  }
  assert {
    condition = jsondecode(aws_iam_role.service.assume_role_policy).Statement[0].Condition.StringEquals == {
      "oidc.eks.eu-central-1.amazonaws.com/id/0123ABCD:aud" = "sts.amazonaws.com"
      "oidc.eks.eu-central-1.amazonaws.com/id/0123ABCD:sub" = "system:serviceaccount:secrets:service"
    }
    error_message = "Who may take the role."
  }
  assert {
    condition     = jsondecode(aws_iam_role.service.assume_role_policy).Statement[0].Principal.Federated == var.oidc_provider_arn
    error_message = "Whose word counts."
  }
  assert {
    condition     = aws_kms_key.data_keys.deletion_window_in_days == 30 && aws_kms_key.data_keys.enable_key_rotation
    error_message = "The key must rotate, and be hard to delete."
  }
}

run "a_durable_elasticache" {
  command = plan

  assert {
    condition = output.settings == {
      WORKFLOW_SECRETS_ENVIRONMENT        = "staging"
      WORKFLOW_SECRETS_KMS_KEY            = "arn:aws:kms:eu-central-1:444455556666:key/0190b1d2-7c3e-4000-8000-000000000000"
      WORKFLOW_SECRETS_KMS_REGION         = "eu-central-1"
      WORKFLOW_SECRETS_STORE              = "rediss-cluster://clustercfg.staging.example.cache.amazonaws.com:6379"
      WORKFLOW_SECRETS_REDIS_USERNAME     = "workflow-secrets"
      WORKFLOW_SECRETS_REDIS_MIN_REPLICAS = "0"
      WORKFLOW_SECRETS_REQUIRE_DURABLE    = "false"
    }
    error_message = "Settings."
  }
  assert {
    condition     = aws_elasticache_replication_group.store[0].durability == "sync"
    error_message = "It must lose nothing that was acknowledged."
  }
  assert {
    condition     = startswith(aws_elasticache_user.service[0].access_string, "on ~workflow-secrets:* resetchannels -@all +hmget ")
    error_message = "The rights of redis-rights.acl, in AWS' order: ${aws_elasticache_user.service[0].access_string}"
  }
  assert {
    condition     = endswith(aws_elasticache_user.service[0].access_string, " +info +ping +cluster|info +cluster|slots +cluster|getkeysinslot +asking")
    error_message = "The rights of a cluster."
  }
  assert {
    condition     = { for p in aws_elasticache_parameter_group.store[0].parameter : p.name => p.value }["maxmemory-policy"] == "noeviction"
    error_message = "Nothing may be evicted."
  }
  assert {
    condition     = length(aws_memorydb_cluster.store) == 0
    error_message = "One store."
  }
}

run "an_elasticache_that_is_not" {
  command = plan
  variables {
    durability = "disabled"
  }

  assert {
    condition     = output.settings.WORKFLOW_SECRETS_REDIS_MIN_REPLICAS == "1"
    error_message = "What is acknowledged must be on a replica."
  }
}

run "memorydb" {
  command = plan
  variables {
    store = "memorydb"
  }

  assert {
    condition     = output.settings.WORKFLOW_SECRETS_STORE == "rediss-cluster://clustercfg.staging.example.memorydb.amazonaws.com:6379"
    error_message = "Where it is."
  }
  assert {
    condition     = output.settings.WORKFLOW_SECRETS_REDIS_USERNAME == aws_memorydb_user.service[0].user_name
    error_message = "As whom."
  }
  assert {
    condition     = length(aws_elasticache_replication_group.store) == 0
    error_message = "One store."
  }
}

run "what_is_not_allowed_is_refused" {
  command = plan
  variables {
    durability         = "async"
    key_administrators = ["arn:aws:iam::444455556666:root"]
    store_password     = "short"
  }

  expect_failures = [var.durability, var.key_administrators, var.store_password]
}
