//! The address of a bucket, as in `s3://photos/imagesvc`.

use std::{fmt, net::Ipv4Addr};

use object_store::path::Path;

/// The longest prefix, in bytes. S3 allows 1024 bytes for the whole name of an object.
const MAX_PREFIX_LEN: usize = 500;

/// A bucket's name, and the prefix of the names of all objects that the service writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    bucket: String,
    /// Empty, or without slashes at its ends.
    prefix: String,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.prefix)
    }
}

impl Location {
    /// Parses `s3://bucket` or `s3://bucket/prefix`. The bucket's name must follow S3's rules,
    /// except those on reserved beginnings and endings:
    /// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html>. A prefix may
    /// contain only slashes and the characters that S3 calls safe, except `*`:
    /// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html>.
    ///
    /// # Errors
    /// The end of a sentence that begins with the setting's name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let rest =
            text.strip_prefix("s3://").ok_or("must begin with s3://, as in s3://bucket/prefix")?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_lowercase_or_digit = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let has_valid_ends = bucket.bytes().next().is_some_and(is_lowercase_or_digit)
            && bucket.bytes().last().is_some_and(is_lowercase_or_digit);
        let has_valid_bytes =
            bucket.bytes().all(|byte| is_lowercase_or_digit(byte) || matches!(byte, b'-' | b'.'));
        let is_ip_address = bucket.parse::<Ipv4Addr>().is_ok();
        let has_valid_len = (3..=63).contains(&bucket.len());
        let has_double_dot = bucket.contains("..");
        if !(has_valid_len && has_valid_ends && has_valid_bytes) || has_double_dot || is_ip_address
        {
            return Err(
                "has no valid bucket name after s3://: a name has 3 to 63 lowercase letters, \
                        digits, dots and hyphens"
                    .into(),
            );
        }
        let prefix = prefix.trim_matches('/');
        let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"!-_.'()".contains(&byte);
        let is_valid_segment =
            |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(is_safe);
        if !prefix.is_empty() && !prefix.split('/').all(is_valid_segment) {
            return Err("has a prefix that is not valid: use letters, digits, - _ . ! ' ( ), and \
                        single slashes between them"
                .into());
        }
        if prefix.len() > MAX_PREFIX_LEN {
            return Err(format!("has a prefix of more than {MAX_PREFIX_LEN} characters"));
        }
        Ok(Self { bucket: bucket.into(), prefix: prefix.into() })
    }

    /// The bucket's name.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The whole name of an object. `path` is the part of the name after the prefix.
    pub(super) fn object(&self, path: &str) -> Path {
        // An empty prefix splits into one empty part. `from_iter` leaves it out.
        Path::from_iter(self.prefix.split('/').chain(path.split('/')))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn object(location: &str, path: &str) -> String {
        Location::parse(location).unwrap().object(path).to_string()
    }

    #[test]
    fn an_object_is_named_by_the_prefix_and_its_path() {
        assert_eq!(object("s3://photos", "downloads/a.jpg"), "downloads/a.jpg");
        assert_eq!(object("s3://photos/", "downloads/a.jpg"), "downloads/a.jpg");
        assert_eq!(object("s3://photos/x", "downloads/a.jpg"), "x/downloads/a.jpg");
        assert_eq!(object("s3://photos/x/y_1/", "vectors/0f"), "x/y_1/vectors/0f");
    }

    #[test]
    fn a_text_without_s3_or_with_an_invalid_bucket_or_prefix_is_refused() {
        for invalid in [
            "photos",
            "http://photos",
            "s3://",
            "s3://ab",
            "s3://Photos",
            "s3://-photos",
            "s3://photos.",
            "s3://pho_tos",
            "s3://pho..tos",
            "s3://192.168.1.1",
            "s3://photos/a//b",
            "s3://photos/../b",
            "s3://photos/a b",
            "s3://photos/ä",
            "s3://photos?x=1",
        ] {
            assert!(Location::parse(invalid).is_err(), "{invalid}");
        }
        let with_prefix = |len| Location::parse(&format!("s3://photos/{}", "a".repeat(len)));
        assert!(with_prefix(MAX_PREFIX_LEN).is_ok());
        assert!(with_prefix(MAX_PREFIX_LEN + 1).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused_and_a_prefix_only_loses_slashes_at_its_ends(
            text in "(s3://)?[a-z0-9.]{0,8}(/[ -~]{0,12})?"
        ) {
            if let Ok(location) = Location::parse(&text) {
                let rest = text.strip_prefix("s3://").unwrap();
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                prop_assert_eq!(location.bucket(), bucket);
                let expected = match prefix.trim_matches('/') {
                    "" => "downloads/a.jpg".to_owned(),
                    prefix => format!("{prefix}/downloads/a.jpg"),
                };
                prop_assert_eq!(location.object("downloads/a.jpg").to_string(), expected);
            }
        }
    }
}
