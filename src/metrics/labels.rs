//! Attributes of few values.

macro_rules! label {
    ($(#[$what:meta])* $name:ident { $($(#[$doc:meta])* $value:ident = $text:literal,)+ }) => {
        $(#[$what])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$doc])* $value,)+
        }

        impl $name {
            /// Each of them.
            pub const ALL: &[Self] = &[$(Self::$value),+];

            /// The text of the attribute.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$value => $text,)+
                }
            }
        }
    };
}

label! {
    /// What the cache of data keys had.
    KeyLookup {
        /// A key, fresh enough.
        Hit = "hit",
        /// A key that serves, while it is refreshed.
        Refresh = "refresh",
        /// None: the KMS is asked.
        Miss = "miss",
        /// A failure of a moment ago, told again.
        Failed = "failed",
    }
}

label! {
    /// A call to the KMS.
    KmsOperation {
        /// Makes a data key.
        Generate = "generate",
        /// Unwraps one.
        Decrypt = "decrypt",
        /// Wraps one anew.
        Rewrap = "rewrap",
    }
}

label! {
    /// How the KMS answered.
    KmsOutcome {
        /// As asked.
        Ok = "ok",
        /// Throttled, 5xx, no answer or no connection.
        Transient = "transient",
        /// The key-encryption key is disabled, gone or denied.
        KeyUnusable = "key_unusable",
        /// The data key does not unwrap.
        WrongCiphertext = "wrong_ciphertext",
        /// Not asked at all: it is taken to be down.
        Down = "down",
        /// Not asked at all: the workspace has used its budget up.
        OverBudget = "over_budget",
    }
}

label! {
    /// A call to the store.
    StoreOperation {
        /// Records by key.
        Read = "read",
        /// A change.
        Commit = "commit",
        /// The revision of a workspace.
        Revision = "revision",
        /// The end of a workspace.
        Shred = "shred",
        /// The outcome remembered under a request id.
        Request = "request",
        /// Records in order.
        Scan = "scan",
        /// Keys in order.
        Keys = "keys",
        /// All workspaces.
        Workspaces = "workspaces",
        /// Whether it can be used.
        Health = "health",
    }
}

label! {
    /// How the store answered.
    Outcome {
        /// As asked, or told why not.
        Ok = "ok",
        /// Not reached, too late, or not able to.
        Unavailable = "unavailable",
        /// Out of memory or disk.
        Full = "full",
        /// Too few replicas have the change.
        NotReplicated = "not_replicated",
        /// Not what this service stores.
        Malformed = "malformed",
        /// The caller went before the answer came.
        Abandoned = "abandoned",
    }
}

label! {
    /// How a store has gone back.
    StoreRegression {
        /// A workspace is older than it was.
        Older = "older",
        /// What was destroyed is there again.
        Resurrected = "shredded_data_back",
    }
}

label! {
    /// A file of certificates.
    Certificate {
        /// The server's chain.
        Server = "server",
        /// The CAs of clients.
        ClientCa = "client_ca",
    }
}

label! {
    /// Files that are watched for changes.
    Watched {
        /// Who may do what.
        Policy = "policy",
        /// Certificates and key.
        Tls = "tls",
        /// Workspaces that are destroyed whatever the store says.
        Shredded = "shredded",
    }
}

impl KmsOperation {
    /// The name of its spans.
    pub fn span(self) -> &'static str {
        match self {
            Self::Generate => "kms generate",
            Self::Decrypt => "kms decrypt",
            Self::Rewrap => "kms rewrap",
        }
    }
}

impl StoreOperation {
    /// The name of its spans.
    pub fn span(self) -> &'static str {
        match self {
            Self::Read => "store read",
            Self::Commit => "store commit",
            Self::Revision => "store revision",
            Self::Shred => "store shred",
            Self::Request => "store request",
            Self::Scan => "store scan",
            Self::Keys => "store keys",
            Self::Workspaces => "store workspaces",
            Self::Health => "store health",
        }
    }
}
