//! Tests that the settings resolve to a checked configuration, or to all of their faults.

use super::*;

fn resolve(pairs: &[(&str, &str)]) -> Result<Config, Faults> {
    Config::resolve(&RawSettings::from_pairs(pairs.iter().copied()))
}

#[test]
fn a_key_alone_is_enough() {
    let config = resolve(&[("NVIDIA_API_KEY", "Bearer nvapi-1")]).unwrap();
    assert!(matches!(config.upstream, Upstream::Nvidia(_)));
    assert_eq!(config.server.listen, "0.0.0.0:8000".parse().unwrap());
    assert_eq!(config.limits.max_image_bytes, 20 << 20);
    assert_eq!(config.nvidia.retry.max_attempts, 3);
    assert_eq!(config.fetch.policy.ports, [80, 443]);
    let [notice] = &config.notices[..] else { panic!("{:?}", config.notices) };
    assert!(notice.contains("IMAGESVC_API_KEYS"), "without client keys there is a warning");
    let with_keys =
        resolve(&[("NVIDIA_API_KEY", "nvapi-1"), ("IMAGESVC_API_KEYS", "a,b")]).unwrap();
    assert!(with_keys.notices.is_empty());
}

#[test]
fn the_keys_of_clients_are_read_from_a_file_too() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "first\nsecond\n").unwrap();
    let path = file.path().to_str().unwrap();
    let config = resolve(&[("IMAGESVC_SANDBOX", "1"), ("IMAGESVC_API_KEYS_FILE", path)]).unwrap();
    assert_eq!(format!("{:?}", config.web.keys), "ClientKeys(2 redacted)");
    for (pairs, fault) in [
        (&[("IMAGESVC_API_KEYS_FILE", "/nowhere")][..], "cannot be read"),
        (&[("IMAGESVC_API_KEYS_FILE", path), ("IMAGESVC_API_KEYS", "a")], "both set"),
        (&[("IMAGESVC_API_KEYS", "planted words")], "space"),
        (&[("IMAGESVC_TRUSTED_PROXIES", "10.0.0.0/99")], "not a network"),
        (&[("IMAGESVC_CORS_ORIGINS", "app.example.com")], "not an origin"),
        (&[("IMAGESVC_DOWNLOADS_MAX_AGE", "0")], "longer than zero"),
        (&[("IMAGESVC_DOWNLOADS_MAX_BYTES", "0")], "more than zero"),
        (&[("IMAGESVC_LOG", "warning")], "not a log filter"),
    ] {
        let pairs = [&[("IMAGESVC_SANDBOX", "1")], pairs].concat();
        let faults = resolve(&pairs).unwrap_err().to_string();
        assert!(faults.contains(fault) && faults.contains(pairs[1].0), "{faults}");
        assert!(!faults.contains("planted"));
    }
}

#[test]
fn a_protective_setting_that_is_set_but_empty_is_a_fault() {
    let sandbox = ("IMAGESVC_SANDBOX", "1");
    for name in [
        "IMAGESVC_API_KEYS",
        "IMAGESVC_API_KEYS_FILE",
        "IMAGESVC_RATE_LIMIT_PER_MINUTE",
        "IMAGESVC_FETCH_HOSTS",
    ] {
        for empty in ["", "  "] {
            let faults = resolve(&[sandbox, (name, empty)]).unwrap_err().to_string();
            assert!(faults.contains(&format!("{name} is set but empty")), "{faults}");
        }
    }
    // A value from another source still counts.
    let keys = "IMAGESVC_API_KEYS";
    assert!(!resolve(&[sandbox, (keys, "a"), (keys, "")]).unwrap().web.keys.is_empty());
    assert!(
        resolve(&[sandbox, ("IMAGESVC_CORS_ORIGINS", "")]).is_ok(),
        "this one allows more, so empty is safe"
    );
    assert!(resolve(&[("NVIDIA_API_KEY", "")]).is_err());
}

#[test]
fn without_a_key_the_fault_names_the_key_and_the_sandbox() {
    let faults = resolve(&[]).unwrap_err().to_string();
    assert!(faults.contains("NVIDIA_API_KEY") && faults.contains("--sandbox"), "{faults}");
}

#[test]
fn all_faults_are_reported_at_once() {
    let faults = resolve(&[
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
        assert!(faults.contains(name), "{name}: {faults}");
    }
}

#[test]
fn the_sandbox_ignores_a_key_and_says_so() {
    let config = resolve(&[("IMAGESVC_SANDBOX", "true"), ("NVIDIA_API_KEY", "nvapi-1")]).unwrap();
    assert!(matches!(config.upstream, Upstream::Sandbox));
    assert!(config.notices[0].contains("ignored"));
    assert!(!format!("{config:?}").contains("nvapi-1"));
}

#[test]
fn a_memory_limit_that_cannot_hold_one_picture_is_a_fault() {
    let faults =
        resolve(&[("IMAGESVC_SANDBOX", "1"), ("IMAGESVC_MAX_IMAGE_BYTES", "200MiB")]).unwrap_err();
    assert!(faults.to_string().contains("IMAGESVC_MAX_BUFFERED_BYTES"));
}

#[test]
fn a_fault_never_quotes_a_key() {
    let faults = resolve(&[("NVIDIA_API_KEY", "nvapi-secret with spaces\u{7}")]).unwrap_err();
    assert!(!faults.to_string().contains("secret"));
}

#[test]
fn every_default_parses_and_is_used_when_nothing_is_given() {
    let key = ("NVIDIA_API_KEY", "nvapi-1");
    let defaults = SETTINGS.iter().filter_map(|row| Some((row.name, row.default?)));
    let given: Vec<_> = defaults.chain([key]).collect();
    assert_eq!(
        format!("{:?}", resolve(&given).unwrap()),
        format!("{:?}", resolve(&[key]).unwrap())
    );
}

#[test]
fn every_setting_is_named_in_its_fault() {
    // A control character is a fault in every setting but the folder, since any text is a path.
    let folder = store::DOWNLOADS_DIR.row.name;
    for row in SETTINGS.iter().filter(|row| row.name != folder) {
        let faults = resolve(&[(row.name, "\u{7}")]).unwrap_err().to_string();
        assert!(faults.contains(&format!("  - {} ", row.name)), "{}: {faults}", row.name);
    }
    let config = resolve(&[(folder, "pictures"), ("IMAGESVC_SANDBOX", "true")]).unwrap();
    assert_eq!(config.store.folder.to_str(), Some("pictures"));
    assert_eq!(config.embed.cache_folder.to_str(), Some("pictures/.vectors"));
}

#[test]
fn a_misspelt_variable_is_named_beside_the_faults() {
    let faults = resolve(&[("IMAGESVC_SANBOX", "true")]).unwrap_err().to_string();
    assert!(faults.contains("IMAGESVC_SANBOX is not a setting"), "{faults}");
}

#[test]
fn a_key_may_come_from_a_file_but_not_from_two_places() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "nvapi-2\n").unwrap();
    let path = file.path().to_str().unwrap();
    let config = resolve(&[("NVIDIA_API_KEY_FILE", path)]).unwrap();
    let Upstream::Nvidia(key) = config.upstream else { panic!("no key") };
    assert!(key.is("nvapi-2"));
    let faults =
        resolve(&[("NVIDIA_API_KEY_FILE", path), ("NVIDIA_API_KEY", "nvapi-1")]).unwrap_err();
    assert!(faults.to_string().contains("keep one"));
    let faults = resolve(&[("NVIDIA_API_KEY_FILE", "/nothing/there")]).unwrap_err();
    assert!(faults.to_string().contains("cannot be read"));
}
