output "settings" {
  description = "Environment of the service. Its password goes into the file of WORKFLOW_SECRETS_REDIS_PASSWORD_FILE."
  value = {
    WORKFLOW_SECRETS_ENVIRONMENT = var.environment
    WORKFLOW_SECRETS_KMS_KEY     = aws_kms_key.data_keys.arn
    WORKFLOW_SECRETS_KMS_REGION  = data.aws_region.current.region
    WORKFLOW_SECRETS_STORE = local.elasticache ? (
      "rediss-cluster://${one(aws_elasticache_replication_group.store[*].configuration_endpoint_address)}:6379"
      ) : (
      "rediss-cluster://${one(aws_memorydb_cluster.store[*].cluster_endpoint[0].address)}:6379"
    )
    WORKFLOW_SECRETS_REDIS_USERNAME = local.elasticache ? "workflow-secrets" : local.name
    # A durable store loses nothing that it acknowledged. One that is not must have it on a
    # replica before the service acknowledges it.
    WORKFLOW_SECRETS_REDIS_MIN_REPLICAS = local.durable ? "0" : "1"
    # Looks for an append-only file, which neither of these has: they have a log of their own.
    WORKFLOW_SECRETS_REQUIRE_DURABLE = "false"
  }
}

output "role_arn" {
  description = "For eks.amazonaws.com/role-arn of the service account."
  value       = aws_iam_role.service.arn
}

output "kms_key_arn" {
  description = "The key that wraps data keys."
  value       = aws_kms_key.data_keys.arn
}

output "store_security_group_id" {
  description = "Of the store; for further rules."
  value       = aws_security_group.store.id
}
