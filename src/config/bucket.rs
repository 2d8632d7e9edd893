//! Settings for the bucket. Its credentials come from AWS's own variables: see `aws.rs`.

use std::time::Duration;

use url::Url;

use super::{
    aws::AwsVariables,
    parse,
    reader::Reader,
    setting::{OptionalSetting, Setting},
    store,
};
use crate::{
    bucket::{Location, Settings},
    store::Retention,
};

pub(super) const BUCKET: OptionalSetting<Location> = OptionalSetting::new(
    "IMAGESVC_BUCKET",
    Location::parse,
    "A bucket for pictures and vectors, in place of the downloads folder: s3://bucket/prefix",
);

pub(super) const ENDPOINT: OptionalSetting<Url> = OptionalSetting::new(
    "IMAGESVC_BUCKET_ENDPOINT",
    parse::endpoint,
    "The URL of a server that speaks S3's protocol, if the bucket is not on S3 itself",
);

pub(super) const REGION: OptionalSetting<String> = OptionalSetting::new(
    "IMAGESVC_BUCKET_REGION",
    region,
    "The bucket's region; without it, `AWS_REGION`, or else `us-east-1`",
);

pub(super) const WRITE_TIMEOUT: Setting<Duration> = Setting::new(
    "IMAGESVC_BUCKET_TIMEOUT",
    "10s",
    parse::positive_duration,
    // Reading has a fixed limit: see `READ_TIMEOUT` in `src/bucket.rs`.
    "The longest time for writing one object to the bucket",
);

/// Reads the settings for the bucket. Returns `None` if there is no bucket, or if its location is
/// invalid.
pub(super) fn resolve(
    reader: &mut Reader<'_>,
    aws_variables: &AwsVariables,
    retention: Retention,
) -> Option<Settings> {
    let location = reader.optional(&BUCKET);
    // True for an invalid location, too: that error should not cause further warnings.
    let is_bucket_set = reader.is_set(&BUCKET.info);
    let (endpoint, region) = (reader.optional(&ENDPOINT), reader.optional(&REGION));
    let timeout = reader.value(&WRITE_TIMEOUT);
    // The timeout causes no warning: a file that lists all defaults sets it even without a bucket.
    for setting in [&ENDPOINT.info, &REGION.info] {
        if reader.is_set(setting) && !is_bucket_set {
            reader
                .warnings
                .push(format!("{} has no effect without {}", setting.name, BUCKET.info.name));
        }
    }
    if is_bucket_set {
        add_retention_errors(reader, retention);
        add_access_key_errors(reader, aws_variables);
    }
    let aws_variables = aws_variables.to_vec();
    Some(Settings { location: location?, endpoint, region, timeout, aws_variables })
}

/// Adds an error for each retention setting that is set: these settings do not apply to a bucket.
fn add_retention_errors(reader: &mut Reader<'_>, retention: Retention) {
    for (setting, is_set) in [
        (&store::DOWNLOADS_MAX_AGE.info, retention.max_age.is_some()),
        (&store::DOWNLOADS_MAX_BYTES.info, retention.max_bytes.is_some()),
    ] {
        if is_set {
            reader.errors.push(format!(
                "{} does not remove pictures from {}: unset it, and give the bucket a lifecycle rule \
                 (docs/scaling.md contains one)",
                setting.name, BUCKET.info.name
            ));
        }
    }
}

/// Adds an error if only the id or only the secret of an access key is set.
fn add_access_key_errors(reader: &mut Reader<'_>, aws_variables: &AwsVariables) {
    let [id_variable, secret_variable] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
    for (present, missing) in [(id_variable, secret_variable), (secret_variable, id_variable)] {
        if aws_variables.is_set(present) && !aws_variables.is_set(missing) {
            reader.errors.push(format!("{missing} is not set, although {present} is: set both"));
        }
    }
}

fn region(text: &str) -> Result<String, String> {
    let is_valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if text.bytes().all(is_valid) {
        Ok(text.into())
    } else {
        Err("is not a region; write eu-central-1".into())
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, RawSettings};

    fn resolve(pairs: &[(&'static str, &'static str)]) -> Result<Config, String> {
        let pairs = [("IMAGESVC_SANDBOX", "true")].into_iter().chain(pairs.iter().copied());
        Config::resolve(&RawSettings::from_pairs(pairs)).map_err(|errors| errors.to_string())
    }

    #[test]
    fn a_bucket_gets_its_credentials_from_the_variables_of_aws_and_debug_output_hides_them() {
        let config = resolve(&[
            ("IMAGESVC_BUCKET", "s3://photos/imagesvc"),
            ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
            ("AWS_SECRET_ACCESS_KEY", "secret-example"),
            ("AWS_PROFILE", "x"), // not one of `AWS_VARIABLES`
        ]);
        let config = config.unwrap();
        let bucket = config.bucket.as_ref().unwrap();
        assert_eq!(bucket.location.bucket(), "photos");
        let names: Vec<_> = bucket.aws_variables.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]);
        let printed = format!("{config:?}");
        assert!(!printed.contains("AKIDEXAMPLE") && !printed.contains("secret-example"));
        // Variables of AWS alone do not set a bucket.
        assert!(resolve(&[("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")]).unwrap().bucket.is_none());
    }

    #[test]
    fn the_id_or_the_secret_of_an_access_key_without_the_other_is_an_error() {
        for (present, missing) in [
            ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
            ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
        ] {
            let error = resolve(&[("IMAGESVC_BUCKET", "s3://photos"), (present, "x")]).unwrap_err();
            assert!(error.contains(&format!("{missing} is not set")), "{error}");
            assert!(resolve(&[(present, "x")]).is_ok(), "without a bucket, nothing needs the key");
        }
    }

    #[test]
    fn retention_settings_beside_a_bucket_are_errors_that_point_to_the_lifecycle_rules() {
        for setting in
            [("IMAGESVC_DOWNLOADS_MAX_AGE", "9days"), ("IMAGESVC_DOWNLOADS_MAX_BYTES", "1GiB")]
        {
            let error = resolve(&[("IMAGESVC_BUCKET", "s3://photos"), setting]).unwrap_err();
            assert!(error.contains(setting.0) && error.contains("lifecycle rule"), "{error}");
            assert!(resolve(&[setting]).is_ok());
        }
    }

    #[test]
    fn a_region_without_a_bucket_causes_a_warning() {
        let config = resolve(&[("IMAGESVC_BUCKET_REGION", "eu-central-1")]).unwrap();
        assert!(config.warnings.iter().any(|warning| warning.contains("IMAGESVC_BUCKET_REGION")));
    }
}
