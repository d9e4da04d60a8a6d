//! A secret's value in memory.

use zeroize::{Zeroize, Zeroizing};

use super::Refusal;

/// Longest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 64 * 1024;

/// A secret's value: UTF-8, 1 byte to 64 KiB, exactly as given.
///
/// It cannot be printed, cloned or serialized, and is overwritten on drop.
pub struct Plaintext(Zeroizing<String>);

impl Plaintext {
    /// Takes a value over, without a copy.
    ///
    /// # Errors
    /// Empty or longer than [`MAX_VALUE_BYTES`]; the text is overwritten.
    pub fn parse(text: String) -> Result<Self, Refusal> {
        let text = Zeroizing::new(text);
        if text.is_empty() {
            return Err(Refusal::Malformed("must not be empty"));
        }
        if text.len() > MAX_VALUE_BYTES {
            return Err(Refusal::TooLarge("must have at most 65,536 bytes"));
        }
        Ok(Self(text))
    }

    /// The value, for sealing it and for handing it to the executor.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Gives the value away, without a copy. The new owner must overwrite it.
    pub fn into_exposed(mut self) -> String {
        std::mem::take(&mut *self.0)
    }
}

impl TryFrom<Zeroizing<Vec<u8>>> for Plaintext {
    type Error = Refusal;

    fn try_from(mut bytes: Zeroizing<Vec<u8>>) -> Result<Self, Refusal> {
        match String::from_utf8(std::mem::take(&mut *bytes)) {
            Ok(text) => Self::parse(text),
            Err(error) => {
                error.into_bytes().zeroize();
                Err(Refusal::Malformed("must be UTF-8"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_exact() {
        assert!(Plaintext::parse("x".repeat(MAX_VALUE_BYTES)).is_ok());
        assert!(matches!(
            Plaintext::parse("x".repeat(MAX_VALUE_BYTES + 1)),
            Err(Refusal::TooLarge(_))
        ));
        assert!(matches!(Plaintext::parse(String::new()), Err(Refusal::Malformed(_))));
    }

    #[test]
    fn is_kept_exactly() {
        let value = " \t trailing\r\n\0 ";
        assert_eq!(
            Plaintext::parse(value.into()).ok().map(Plaintext::into_exposed).as_deref(),
            Some(value)
        );
        assert!(Plaintext::try_from(Zeroizing::new(vec![0xff])).is_err());
    }
}
