terraform {
  # 1.11: arguments that are written and kept in no state, for the password.
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source = "hashicorp/aws"
      # The tests hold the module to the schema of 6.66.0.
      version = "~> 6.66"
    }
  }
}
