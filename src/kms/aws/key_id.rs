//! Names of KMS keys.
//! Source: AWS KMS Developer Guide, "Key identifiers (KeyId)".

use std::fmt;

use crate::domain::Refusal;

/// Names a symmetric KMS key, in one of the forms that KMS takes as `KeyId`:
///
/// - key id: a UUID, or `mrk-` and 32 hex digits (multi-Region)
/// - key ARN: `arn:aws:kms:REGION:ACCOUNT:key/KEY-ID`
/// - alias: `alias/NAME`
/// - alias ARN: `arn:aws:kms:REGION:ACCOUNT:alias/NAME`
///
/// Any partition is taken (`aws`, `aws-cn`, `aws-us-gov`, ...).
#[derive(Clone, PartialEq, Eq)]
pub struct KmsKeyId {
    text: String,
    arn: Option<Arn>,
    resource: Resource,
}

#[derive(Clone, PartialEq, Eq)]
struct Arn {
    region: String,
    account: String,
}

#[derive(Clone, PartialEq, Eq)]
enum Resource {
    Key(String),
    Alias,
}

const RULE: Refusal = Refusal::Malformed(
    "must be a KMS key id (UUID or mrk- and 32 lower-case hex digits), alias/NAME, \
     or the ARN of a key or an alias",
);

impl KmsKeyId {
    /// Parses a key id, an alias or the ARN of either.
    ///
    /// # Errors
    /// It has none of these forms.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let (arn, resource) = match text.strip_prefix("arn:") {
            None if text.starts_with("alias/") => (None, text.to_owned()),
            None => (None, format!("key/{text}")),
            Some(rest) => {
                let (arn, resource) = Arn::parse(rest).ok_or(RULE)?;
                (Some(arn), resource.to_owned())
            }
        };
        let resource = match resource.split_once('/') {
            Some(("key", id)) if is_key_id(id) => Resource::Key(id.to_owned()),
            Some(("alias", name)) if is_alias_name(name) => Resource::Alias,
            _ => return Err(RULE),
        };
        Ok(Self { text: text.to_owned(), arn, resource })
    }

    /// As it was given, which is how KMS takes it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The region, if it is an ARN.
    pub fn region(&self) -> Option<&str> {
        self.arn.as_ref().map(|arn| arn.region.as_str())
    }
}

impl fmt::Debug for KmsKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

impl Arn {
    /// From what follows `arn:`; also returns the resource.
    fn parse(rest: &str) -> Option<(Self, &str)> {
        let mut parts = rest.splitn(5, ':');
        let (partition, service) = (parts.next()?, parts.next()?);
        let (region, account, resource) = (parts.next()?, parts.next()?, parts.next()?);
        let aws = partition == "aws" || partition.starts_with("aws-");
        let plain = |text: &str| {
            text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        let account_ok = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
        let fits = aws
            && plain(partition)
            && service == "kms"
            && !region.is_empty()
            && plain(region)
            && account_ok;
        fits.then(|| (Self { region: region.to_owned(), account: account.to_owned() }, resource))
    }
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_key_id(text: &str) -> bool {
    if let Some(id) = text.strip_prefix("mrk-") {
        return is_hex(id, 32);
    }
    let mut groups = text.split('-');
    [8, 4, 4, 4, 12].into_iter().all(|digits| groups.next().is_some_and(|g| is_hex(g, digits)))
        && groups.next().is_none()
}

fn is_alias_name(text: &str) -> bool {
    // 256 with the `alias/` that was cut off.
    (1..=250).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'_' | b'-'))
}

/// A key that once wrapped data keys and may still unwrap them: a key id or a
/// key ARN. An alias may be pointed elsewhere, so it names no past key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviousKey(KmsKeyId);

impl PreviousKey {
    /// Parses a key id or a key ARN.
    ///
    /// # Errors
    /// It has neither form.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let rule = Refusal::Malformed("must be a KMS key id or key ARN, not an alias");
        match KmsKeyId::parse(text) {
            Ok(key) if key.resource != Resource::Alias => Ok(Self(key)),
            _ => Err(rule),
        }
    }

    /// What to pass to KMS.
    pub(super) fn key(&self) -> &KmsKeyId {
        &self.0
    }

    /// Whether `stored`, a key as KMS named it in an earlier answer, is this
    /// key: the same key id in the same account. The region counts only for
    /// single-Region keys, as replicas of a multi-Region key share its id.
    pub(super) fn is(&self, stored: &str) -> bool {
        let Ok(stored) = KmsKeyId::parse(stored) else {
            return false;
        };
        let (Resource::Key(ours), Resource::Key(theirs)) = (&self.0.resource, &stored.resource)
        else {
            return false;
        };
        let same_place = match (&self.0.arn, &stored.arn) {
            (Some(ours_arn), Some(theirs_arn)) => {
                ours_arn.account == theirs_arn.account
                    && (ours.starts_with("mrk-") || ours_arn.region == theirs_arn.region)
            }
            // A bare id is looked up by KMS in the caller's account and region.
            _ => true,
        };
        ours == theirs && same_place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "1234abcd-12ab-34cd-56ef-1234567890ab";
    const MRK: &str = "mrk-1234abcd12ab34cd56ef1234567890ab";

    #[test]
    fn takes_what_kms_takes() {
        for (good, region) in [
            (ID.to_owned(), None),
            (MRK.to_owned(), None),
            ("alias/secrets/prod_1".to_owned(), None),
            (format!("alias/{}", "a".repeat(250)), None),
            (format!("arn:aws:kms:eu-west-1:111122223333:key/{ID}"), Some("eu-west-1")),
            (format!("arn:aws-cn:kms:cn-north-1:111122223333:key/{MRK}"), Some("cn-north-1")),
            (
                "arn:aws-us-gov:kms:us-gov-west-1:111122223333:alias/a".to_owned(),
                Some("us-gov-west-1"),
            ),
        ] {
            let key = KmsKeyId::parse(&good).ok();
            assert_eq!(key.as_ref().map(KmsKeyId::as_str), Some(&*good));
            assert_eq!(key.as_ref().and_then(KmsKeyId::region), region, "{good}");
        }
    }

    #[test]
    fn refuses_anything_else() {
        let arn = format!("arn:aws:kms:eu-west-1:111122223333:key/{ID}");
        for bad in [
            String::new(),
            "secrets".to_owned(),
            "alias/".to_owned(),
            "alias/a b".to_owned(),
            "alias/a:b".to_owned(),
            format!("alias/{}", "a".repeat(251)),
            format!("key/{ID}"),
            ID.to_uppercase(),
            format!("{ID}-00"),
            ID.replace('-', ""),
            "mrk-1234".to_owned(),
            format!("mrk-{ID}"),
            arn.replace("kms", "s3"),
            arn.replace("aws", "aw"),
            arn.replace("eu-west-1", ""),
            arn.replace("111122223333", "11112222333"),
            arn.replace("key/", "grant/"),
            arn.replace(ID, "alias"),
            format!("{arn} "),
            format!("{arn}\n"),
        ] {
            assert!(KmsKeyId::parse(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn previous_keys_are_known_by_account_and_id() {
        let arn = format!("arn:aws:kms:eu-west-1:111122223333:key/{ID}");
        let mrk = format!("arn:aws:kms:eu-west-1:111122223333:key/{MRK}");
        let is = |previous: &str, stored: &str| PreviousKey::parse(previous).unwrap().is(stored);
        assert!(is(&arn, &arn));
        assert!(is(ID, &arn));
        assert!(is(&mrk, &mrk.replace("eu-west-1", "us-east-1")));
        assert!(!is(&arn, &arn.replace("eu-west-1", "us-east-1")));
        assert!(!is(&mrk, &mrk.replace("111122223333", "444455556666")));
        assert!(!is(&arn, &arn.replace("ab", "cd")));
        assert!(!is(&arn, "local"));
        assert!(!is(&arn, "alias/a"));
        assert!(PreviousKey::parse("alias/a").is_err());
    }
}
