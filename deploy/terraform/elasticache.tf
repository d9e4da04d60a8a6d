resource "aws_elasticache_subnet_group" "store" {
  count = local.elasticache ? 1 : 0

  name       = local.name
  subnet_ids = var.subnet_ids
  tags       = local.tags
}

resource "aws_elasticache_parameter_group" "store" {
  count = local.elasticache ? 1 : 0

  name        = local.name
  family      = "valkey9"
  description = "workflow-secrets in ${var.environment}"
  tags        = local.tags

  # The service refuses any other: secrets would be evicted.
  parameter {
    name  = "maxmemory-policy"
    value = "noeviction"
  }

  parameter {
    name  = "cluster-enabled"
    value = "yes"
  }
}

resource "aws_elasticache_user" "service" {
  count = local.elasticache ? 1 : 0

  user_id       = local.name
  user_name     = "workflow-secrets"
  engine        = "valkey"
  access_string = local.access_string
  tags          = local.tags

  # In no state and no plan that is kept.
  passwords_wo         = var.store_password
  passwords_wo_version = var.store_password_version
}

# Of Valkey: without a user `default`, so that nobody comes in without a password.
resource "aws_elasticache_user_group" "store" {
  count = local.elasticache ? 1 : 0

  user_group_id = local.name
  engine        = "valkey"
  user_ids      = [aws_elasticache_user.service[0].user_id]
  tags          = local.tags
}

# Cluster mode, also with one shard: durability is had in no other.
resource "aws_elasticache_replication_group" "store" {
  count = local.elasticache ? 1 : 0

  replication_group_id = local.name
  description          = "Secrets of workflow-secrets in ${var.environment}"
  engine               = "valkey"
  engine_version       = "9.0"
  durability           = var.durability
  node_type            = local.node_type
  port                 = 6379

  cluster_mode               = "enabled"
  num_node_groups            = var.shards
  replicas_per_node_group    = var.replicas_per_shard
  automatic_failover_enabled = true
  multi_az_enabled           = true

  parameter_group_name = aws_elasticache_parameter_group.store[0].name
  subnet_group_name    = aws_elasticache_subnet_group.store[0].name
  security_group_ids   = [aws_security_group.store.id]
  user_group_ids       = [aws_elasticache_user_group.store[0].user_group_id]

  transit_encryption_enabled = true
  transit_encryption_mode    = "required"
  at_rest_encryption_enabled = true
  kms_key_id                 = aws_kms_key.at_rest.arn

  snapshot_retention_limit   = var.snapshot_retention_days
  snapshot_window            = var.snapshot_window
  final_snapshot_identifier  = "${local.name}-final"
  maintenance_window         = var.maintenance_window
  auto_minor_version_upgrade = true
  apply_immediately          = false
  tags                       = local.tags

  lifecycle {
    prevent_destroy = true
  }
}
