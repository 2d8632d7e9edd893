//! Tests that settings resolve to a `Config`, or to all of their errors.

use super::*;
use crate::nvidia::CallLimit;

/// Resolves settings with these names and values.
fn resolve(pairs: &[(&str, &str)]) -> Result<Config, SettingErrors> {
    Config::resolve(&RawSettings::from_pairs(pairs.iter().copied()))
}

#[test]
fn the_nvidia_key_is_the_only_required_setting_and_missing_client_keys_cause_a_warning() {
    let config = resolve(&[("NVIDIA_API_KEY", "nvapi-1")]).unwrap();
    assert!(matches!(config.upstream, Upstream::Nvidia(_)));
    assert_eq!(config.server.listen, "0.0.0.0:8000".parse().unwrap());
    assert_eq!(config.limits.max_image_bytes, 20 << 20);
    assert_eq!(config.nvidia.retry.max_attempts, 3);
    assert_eq!(config.fetch.policy.ports, [80, 443]);
    let [warning] = &config.warnings[..] else {
        panic!("there should be exactly one warning: {:?}", config.warnings)
    };
    assert!(warning.contains("IMAGESVC_API_KEYS"), "{warning}");
    let with_keys =
        resolve(&[("NVIDIA_API_KEY", "nvapi-1"), ("IMAGESVC_API_KEYS", "a,b")]).unwrap();
    assert!(with_keys.warnings.is_empty());
}

#[test]
fn client_keys_are_read_from_a_file_and_an_invalid_setting_is_named_with_the_mistake() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "first\nsecond\n").unwrap();
    let path = file.path().to_str().unwrap();
    let config = resolve(&[("IMAGESVC_SANDBOX", "1"), ("IMAGESVC_API_KEYS_FILE", path)]).unwrap();
    assert_eq!(format!("{:?}", config.web.keys), "ClientKeys(2 redacted)");
    for (invalid, mistake) in [
        (&[("IMAGESVC_API_KEYS_FILE", "/nowhere")][..], "cannot be read"),
        (&[("IMAGESVC_API_KEYS_FILE", path), ("IMAGESVC_API_KEYS", "a")], "both set"),
        (&[("IMAGESVC_API_KEYS", "planted key")], "space"),
        (&[("IMAGESVC_TRUSTED_PROXIES", "10.0.0.0/99")], "not a network"),
        (&[("IMAGESVC_CORS_ORIGINS", "app.example.com")], "not an origin"),
        (&[("IMAGESVC_DOWNLOADS_MAX_AGE", "0")], "longer than zero"),
        (&[("IMAGESVC_DOWNLOADS_MAX_BYTES", "0")], "more than zero"),
        (&[("IMAGESVC_LOG", "warning")], "not a log filter"),
    ] {
        let pairs = [&[("IMAGESVC_SANDBOX", "1")], invalid].concat();
        let errors = resolve(&pairs).unwrap_err().to_string();
        assert!(errors.contains(mistake) && errors.contains(invalid[0].0), "{errors}");
        assert!(!errors.contains("planted"), "an error must not quote a key: {errors}");
    }
}

#[test]
fn an_empty_value_is_an_error_for_settings_that_protect_the_service() {
    let sandbox = ("IMAGESVC_SANDBOX", "1");
    for name in [
        "IMAGESVC_API_KEYS",
        "IMAGESVC_API_KEYS_FILE",
        "IMAGESVC_RATE_LIMIT_PER_MINUTE",
        "IMAGESVC_FETCH_HOSTS",
    ] {
        for empty in ["", "  "] {
            let errors = resolve(&[sandbox, (name, empty)]).unwrap_err().to_string();
            assert!(errors.contains(&format!("{name} is set but empty")), "{errors}");
        }
    }
    // Two pairs with the same name stand for, say, the environment and `.env`. An empty value is ignored if
    // the other one is not empty.
    let keys = "IMAGESVC_API_KEYS";
    assert!(!resolve(&[sandbox, (keys, "a"), (keys, "")]).unwrap().web.keys.is_empty());
    assert!(
        resolve(&[sandbox, ("IMAGESVC_CORS_ORIGINS", "")]).is_ok(),
        "an empty list of origins must not be an error, because it allows no other site"
    );
    // An empty NVIDIA key counts as unset, but a key is required.
    assert!(resolve(&[("NVIDIA_API_KEY", "")]).is_err());
}

#[test]
fn the_error_of_a_missing_nvidia_key_names_its_setting_and_the_sandbox_flag() {
    let errors = resolve(&[]).unwrap_err().to_string();
    assert!(errors.contains("NVIDIA_API_KEY") && errors.contains("--sandbox"), "{errors}");
}

#[test]
fn all_errors_are_reported_at_once() {
    let errors = resolve(&[
        ("IMAGESVC_PORT", "http"),
        ("NVIDIA_TIMEOUT", "soon"),
        ("IMAGESVC_FETCH_ALLOW", "10.0.0.0/99"),
        ("IMAGESVC_CACHE_DISK", "much"),
    ])
    .unwrap_err()
    .to_string();
    for name in [
        "IMAGESVC_PORT",
        "NVIDIA_TIMEOUT",
        "IMAGESVC_FETCH_ALLOW",
        "IMAGESVC_CACHE_DISK",
        "NVIDIA_API_KEY",
    ] {
        assert!(errors.contains(name), "{name}: {errors}");
    }
}

#[test]
fn the_sandbox_ignores_the_nvidia_key_and_adds_a_warning() {
    let config = resolve(&[("IMAGESVC_SANDBOX", "true"), ("NVIDIA_API_KEY", "nvapi-1")]).unwrap();
    assert!(matches!(config.upstream, Upstream::Sandbox));
    assert!(config.warnings[0].contains("ignored"));
    assert!(!format!("{config:?}").contains("nvapi-1"));
}

#[test]
fn a_memory_limit_that_is_too_small_for_one_picture_is_an_error() {
    // By default, IMAGESVC_MAX_BUFFERED_BYTES is 128 MiB.
    let errors =
        resolve(&[("IMAGESVC_SANDBOX", "1"), ("IMAGESVC_MAX_IMAGE_BYTES", "200MiB")]).unwrap_err();
    assert!(errors.to_string().contains("IMAGESVC_MAX_BUFFERED_BYTES"));
}

#[test]
fn the_error_of_an_invalid_nvidia_key_does_not_quote_the_key() {
    let errors = resolve(&[("NVIDIA_API_KEY", "nvapi-secret with spaces\u{7}")]).unwrap_err();
    assert!(!errors.to_string().contains("secret"));
}

#[test]
fn every_default_parses_and_is_used_if_the_setting_is_not_set() {
    let key = ("NVIDIA_API_KEY", "nvapi-1");
    let defaults = settings::all().filter_map(|setting| Some((setting.name, setting.default?)));
    let all: Vec<_> = defaults.chain([key]).collect();
    let with_defaults_set = format!("{:?}", resolve(&all).unwrap());
    assert_eq!(with_defaults_set, format!("{:?}", resolve(&[key]).unwrap()));
}

#[test]
fn an_invalid_value_is_reported_with_the_name_of_its_setting() {
    // A control character is invalid in every setting except paths. The paths of files are invalid here
    // because the files do not exist. The downloads folder need not exist.
    let downloads_dir = store::DOWNLOADS_DIR.info.name;
    for setting in settings::all().filter(|setting| setting.name != downloads_dir) {
        let errors = resolve(&[(setting.name, "\u{7}")]).unwrap_err().to_string();
        assert!(errors.contains(&format!("  - {} ", setting.name)), "{}: {errors}", setting.name);
    }
}

#[test]
fn the_cache_is_in_the_downloads_folder() {
    let downloads_dir = store::DOWNLOADS_DIR.info.name;
    let config = resolve(&[(downloads_dir, "pictures"), ("IMAGESVC_SANDBOX", "true")]).unwrap();
    assert_eq!(config.store.folder.to_str(), Some("pictures"));
    assert_eq!(config.embed.cache_folder.to_str(), Some("pictures/.vectors"));
}

#[test]
fn errors_include_the_warning_about_a_misspelt_variable() {
    // The misspelt variable alone causes only a warning. The error is the missing key.
    let errors = resolve(&[("IMAGESVC_SANBOX", "true")]).unwrap_err().to_string();
    assert!(errors.contains("IMAGESVC_SANBOX is not a setting"), "{errors}");
}

#[test]
fn the_nvidia_key_is_read_from_a_file_and_setting_both_file_and_key_is_an_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "nvapi-2\n").unwrap();
    let path = file.path().to_str().unwrap();
    let config = resolve(&[("NVIDIA_API_KEY_FILE", path)]).unwrap();
    let Upstream::Nvidia(key) = config.upstream else { panic!("the upstream should be NVIDIA") };
    assert!(key.is("nvapi-2"));
    let errors =
        resolve(&[("NVIDIA_API_KEY_FILE", path), ("NVIDIA_API_KEY", "nvapi-1")]).unwrap_err();
    assert!(errors.to_string().contains("keep one"));
    let errors = resolve(&[("NVIDIA_API_KEY_FILE", "/nothing/there")]).unwrap_err();
    assert!(errors.to_string().contains("cannot be read"));
}

#[test]
fn each_replica_gets_an_equal_part_of_the_calls_per_minute() {
    let part = |limit: &str, replicas: &str| {
        let values = [
            ("IMAGESVC_SANDBOX", "true"),
            ("NVIDIA_REQUESTS_PER_MINUTE", limit),
            ("IMAGESVC_REPLICAS", replicas),
        ];
        resolve(&values).map(|config| config.nvidia.call_limit.map(CallLimit::calls_per_minute))
    };
    for (limit, replicas, expected) in [("40", "1", 40), ("40", "3", 13), ("3", "3", 1)] {
        assert_eq!(part(limit, replicas).unwrap(), Some(expected), "{limit} for {replicas}");
    }
    let errors = part("2", "3").unwrap_err().to_string();
    assert!(errors.contains("IMAGESVC_REPLICAS must be at most 2"), "{errors}");
    let unlimited = [("IMAGESVC_SANDBOX", "true"), ("IMAGESVC_REPLICAS", "3")];
    assert_eq!(resolve(&unlimited).unwrap().nvidia.call_limit, None);
}

#[test]
fn with_a_valkey_the_calls_per_minute_are_not_divided_and_may_be_fewer_than_the_replicas() {
    let values = [
        ("IMAGESVC_SANDBOX", "true"),
        ("NVIDIA_REQUESTS_PER_MINUTE", "2"),
        ("IMAGESVC_REPLICAS", "3"),
        ("IMAGESVC_VALKEY_URL", "redis://cache.example"),
    ];
    let limit = resolve(&values).unwrap().nvidia.call_limit;
    assert_eq!(limit.map(CallLimit::calls_per_minute), Some(2));
}
