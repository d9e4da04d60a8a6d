resource "aws_memorydb_subnet_group" "store" {
  count = local.elasticache ? 0 : 1

  name       = local.name
  subnet_ids = var.subnet_ids
  tags       = local.tags
}

resource "aws_memorydb_parameter_group" "store" {
  count = local.elasticache ? 0 : 1

  name        = local.name
  family      = "memorydb_valkey7"
  description = "workflow-secrets in ${var.environment}"
  tags        = local.tags

  # The service refuses any other: secrets would be evicted.
  parameter {
    name  = "maxmemory-policy"
    value = "noeviction"
  }
}

# The provider has no argument for this password that is kept out of the state: encrypt the
# state, and let nobody read it who may not read the store.
resource "aws_memorydb_user" "service" {
  count = local.elasticache ? 0 : 1

  user_name     = local.name
  access_string = local.access_string
  tags          = local.tags

  authentication_mode {
    type      = "password"
    passwords = [var.store_password]
  }
}

resource "aws_memorydb_acl" "store" {
  count = local.elasticache ? 0 : 1

  name       = local.name
  user_names = [aws_memorydb_user.service[0].user_name]
  tags       = local.tags
}

resource "aws_memorydb_cluster" "store" {
  count = local.elasticache ? 0 : 1

  name           = local.name
  description    = "Secrets of workflow-secrets in ${var.environment}"
  engine         = "valkey"
  engine_version = "7.3"
  node_type      = local.node_type
  port           = 6379

  num_shards             = var.shards
  num_replicas_per_shard = var.replicas_per_shard

  acl_name             = aws_memorydb_acl.store[0].name
  parameter_group_name = aws_memorydb_parameter_group.store[0].name
  subnet_group_name    = aws_memorydb_subnet_group.store[0].name
  security_group_ids   = [aws_security_group.store.id]

  tls_enabled = true
  kms_key_arn = aws_kms_key.at_rest.arn

  snapshot_retention_limit   = var.snapshot_retention_days
  snapshot_window            = var.snapshot_window
  final_snapshot_name        = "${local.name}-final"
  maintenance_window         = var.maintenance_window
  auto_minor_version_upgrade = true
  tags                       = local.tags

  lifecycle {
    prevent_destroy = true
  }
}
