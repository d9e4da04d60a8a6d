# A deployment in an EKS cluster that exists. The password comes from outside:
#   TF_VAR_store_password=$(cat redis-password) terraform apply
terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.66"
    }
  }
}

provider "aws" {
  region = "eu-west-1"
}

variable "store_password" {
  description = "See ../variables.tf."
  type        = string
  sensitive   = true
}

module "workflow_secrets" {
  source = "../"

  environment        = "production"
  key_administrators = ["arn:aws:iam::111122223333:role/kms-administrator"]
  oidc_provider_arn  = "arn:aws:iam::111122223333:oidc-provider/oidc.eks.eu-west-1.amazonaws.com/id/EXAMPLE"
  vpc_id             = "vpc-0123456789abcdef0"
  subnet_ids         = ["subnet-0123456789abcdef0", "subnet-0123456789abcdef1"]
  store_password     = var.store_password

  client_security_group_ids = {
    nodes = "sg-0123456789abcdef0"
  }
}

output "settings" {
  description = "For deploy/kubernetes/deployment.yaml."
  value       = module.workflow_secrets.settings
}

output "role_arn" {
  description = "For deploy/kubernetes/serviceaccount.yaml."
  value       = module.workflow_secrets.role_arn
}
