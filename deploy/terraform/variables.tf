variable "environment" {
  description = "The service's --environment. Bound into everything encrypted: it can never change for a store that holds secrets."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,19}$", var.environment))
    error_message = "Lower-case letters, digits and hyphens, at most 20."
  }
}

variable "tags" {
  description = "Put on everything."
  type        = map(string)
  default     = {}
}

# The KMS key and the role.

variable "key_administrators" {
  description = "ARNs of the IAM roles that administer the KMS key and cannot use it. Terraform must run as one of them, and people must be able to take one: nobody else can ever change the key's policy."
  type        = list(string)

  validation {
    condition     = length(var.key_administrators) > 0 && alltrue([for arn in var.key_administrators : can(regex("^arn:[a-z-]+:iam::[0-9]{12}:role/", arn))])
    error_message = "One or more ARNs of roles."
  }
}

variable "multi_region_key" {
  description = "Make a multi-Region key, so that a replica key in another region can take its place in an outage. It cannot be changed later."
  type        = bool
  default     = false
}

variable "oidc_provider_arn" {
  description = "ARN of the cluster's OIDC provider in IAM."
  type        = string

  validation {
    condition     = can(regex("^arn:[a-z-]+:iam::[0-9]{12}:oidc-provider/.+", var.oidc_provider_arn))
    error_message = "The ARN of an OIDC provider."
  }
}

variable "service_account" {
  description = "The service's account in the cluster, and its namespace."
  type        = object({ namespace = string, name = string })
  default     = { namespace = "workflow-secrets", name = "workflow-secrets" }
}

variable "permissions_boundary" {
  description = "ARN of a permissions boundary for the role, if your organisation demands one."
  type        = string
  default     = null
}

# The store.

variable "store" {
  description = "elasticache (for Valkey) or memorydb."
  type        = string
  default     = "elasticache"

  validation {
    condition     = contains(["elasticache", "memorydb"], var.store)
    error_message = "elasticache or memorydb."
  }
}

variable "durability" {
  description = "Of ElastiCache: sync, which loses nothing that was acknowledged, or disabled, which a failover may. MemoryDB is always durable."
  type        = string
  default     = "sync"

  validation {
    condition     = contains(["sync", "disabled"], var.durability)
    error_message = "sync or disabled; async loses up to 10 s of what was acknowledged."
  }
}

variable "vpc_id" {
  description = "The VPC of the store."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets in at least two Availability Zones."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) >= 2
    error_message = "Two or more."
  }
}

variable "client_security_group_ids" {
  description = "Security groups of the service's pods or nodes, by a name of your choice: who may reach the store."
  type        = map(string)
}

variable "store_password" {
  description = "Password of the service's user: what --redis-password-file holds. `openssl rand -hex 32` makes one."
  type        = string
  sensitive   = true

  validation {
    condition     = length(var.store_password) >= 32 && length(var.store_password) <= 128
    error_message = "32 to 128 characters."
  }
}

variable "store_password_version" {
  description = "Raise it to have a changed password taken by ElastiCache, which keeps none in the state to compare with."
  type        = number
  default     = 1
}

variable "node_type" {
  description = "Null: cache.r7g.large or db.r7g.large. Durability is had with R7g, R6g, M7g, M6g and C7gn."
  type        = string
  default     = null
}

variable "shards" {
  description = "Each holds a part of the workspaces."
  type        = number
  default     = 1
}

variable "replicas_per_shard" {
  description = "In other Availability Zones, ready to take over."
  type        = number
  default     = 2

  validation {
    condition     = var.replicas_per_shard >= 1 && var.replicas_per_shard <= 5
    error_message = "1 to 5."
  }
}

variable "snapshot_retention_days" {
  description = "A snapshot holds what was destroyed after it, with its wrapped keys: keep it no longer than that may be."
  type        = number
  default     = 7
}

variable "snapshot_window" {
  description = "UTC."
  type        = string
  default     = "02:00-03:00"
}

variable "maintenance_window" {
  description = "UTC."
  type        = string
  default     = "sun:03:30-sun:05:00"
}
