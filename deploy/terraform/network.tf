resource "aws_security_group" "store" {
  name_prefix            = "${local.name}-store-"
  description            = "The store of workflow-secrets in ${var.environment}"
  vpc_id                 = var.vpc_id
  revoke_rules_on_delete = true
  tags                   = local.tags

  lifecycle {
    create_before_destroy = true
  }
}

# Nothing goes out: no egress rule is made.
resource "aws_vpc_security_group_ingress_rule" "store" {
  for_each = var.client_security_group_ids

  security_group_id            = aws_security_group.store.id
  description                  = "Valkey over TLS from ${each.key}"
  referenced_security_group_id = each.value
  ip_protocol                  = "tcp"
  from_port                    = 6379
  to_port                      = 6379
  tags                         = local.tags
}
