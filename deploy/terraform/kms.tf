# Wraps the data keys of all workspaces. **Deleting it destroys all secrets**, backups too.
resource "aws_kms_key" "data_keys" {
  description              = "Wraps the data keys of workflow-secrets in ${var.environment}"
  key_usage                = "ENCRYPT_DECRYPT"
  customer_master_key_spec = "SYMMETRIC_DEFAULT"
  multi_region             = var.multi_region_key

  # Needs nothing of the service: KMS keeps the older material to unwrap with.
  enable_key_rotation     = true
  rotation_period_in_days = 365

  # The longest. Refused anyway while prevent_destroy stands below.
  deletion_window_in_days = 30
  policy                  = local.key_policy
  tags                    = local.tags

  lifecycle {
    prevent_destroy = true

    # Names of the example that were not replaced would lock everybody out.
    precondition {
      condition     = !strcontains(local.key_policy, "111122223333") || data.aws_caller_identity.current.account_id == "111122223333"
      error_message = "deploy/aws/kms-key-policy.json no longer has the names that locals.tf replaces."
    }
  }
}

resource "aws_kms_alias" "data_keys" {
  name          = "alias/${local.name}"
  target_key_id = aws_kms_key.data_keys.key_id
}

# Encrypts the store's disks and snapshots. Another key than the one above, whose policy
# lets nobody but the service use it, and it only in the service's context.
resource "aws_kms_key" "at_rest" {
  description             = "Encrypts the store of workflow-secrets in ${var.environment} at rest"
  enable_key_rotation     = true
  deletion_window_in_days = 30
  tags                    = local.tags

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "Administer"
        Effect    = "Allow"
        Principal = { AWS = var.key_administrators }
        Action = [
          "kms:CancelKeyDeletion", "kms:DescribeKey", "kms:DisableKey", "kms:EnableKey",
          "kms:EnableKeyRotation", "kms:GetKeyPolicy", "kms:GetKeyRotationStatus",
          "kms:ListGrants", "kms:ListKeyPolicies", "kms:ListResourceTags", "kms:PutKeyPolicy",
          "kms:RevokeGrant", "kms:ScheduleKeyDeletion", "kms:TagResource", "kms:UntagResource",
          "kms:UpdateKeyDescription",
        ]
        Resource = "*"
      },
      {
        Sid       = "UseThroughTheStoreOnly"
        Effect    = "Allow"
        Principal = { AWS = "arn:${data.aws_partition.current.partition}:iam::${data.aws_caller_identity.current.account_id}:root" }
        Action = [
          "kms:CreateGrant", "kms:Decrypt", "kms:DescribeKey", "kms:Encrypt",
          "kms:GenerateDataKey*", "kms:ReEncrypt*",
        ]
        Resource = "*"
        Condition = {
          StringEquals = {
            "kms:CallerAccount" = data.aws_caller_identity.current.account_id
            "kms:ViaService"    = "${local.elasticache ? "elasticache" : "memorydb"}.${data.aws_region.current.region}.${data.aws_partition.current.dns_suffix}"
          }
        }
      },
    ]
  })

  lifecycle {
    prevent_destroy = true
  }
}
