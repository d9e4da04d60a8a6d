# The role that the service's account in the cluster takes, and nobody else.
resource "aws_iam_role" "service" {
  name                 = local.name
  description          = "workflow-secrets in ${var.environment}: wraps and unwraps data keys"
  assume_role_policy   = local.trust_policy
  permissions_boundary = var.permissions_boundary
  max_session_duration = 3600
  tags                 = local.tags
}

# In this account the key's policy alone would do; it is what limits, as it names no account
# root. This one lets the key be moved to an account of its own.
resource "aws_iam_role_policy" "service" {
  name   = "wrap-and-unwrap-data-keys"
  role   = aws_iam_role.service.id
  policy = local.role_policy
}
