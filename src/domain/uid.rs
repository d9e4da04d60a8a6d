//! Random identities (UUIDv4, RFC 9562).

use std::fmt;

use uuid::Uuid;

use super::Refusal;

macro_rules! uids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// A fresh one.
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }

            /// From its text, as it is printed.
            ///
            /// # Errors
            /// Any other text.
            pub fn parse(text: &str) -> Result<Self, Refusal> {
                let parsed = Uuid::try_parse(text).ok().map(Self);
                let printed = parsed.filter(|uid| uid.to_string() == text);
                printed.ok_or(Refusal::Malformed("must be a UUID in lower case, with hyphens"))
            }

            /// From its 16 bytes.
            pub fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// Its 16 bytes.
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    )*};
}

uids! {
    /// Identity of one secret; a secret created again under a name has another.
    SecretUid;
    /// Names a data key; part of the encryption context and of every sealed
    /// value.
    DataKeyId;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_form_in_which_it_is_written_is_read() {
        let id = DataKeyId::from_bytes([0xab; 16]);
        let text = "abababab-abab-abab-abab-abababababab";
        assert_eq!(DataKeyId::parse(text), Ok(id));
        let bad = [text.to_uppercase(), text.replace('-', ""), format!("{{{text}}}"), "".into()];
        for bad in bad {
            assert!(DataKeyId::parse(&bad).is_err(), "{bad}");
        }
    }
}
