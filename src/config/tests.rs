//! One checked configuration, or all of its faults.

use super::*;

fn resolve(pairs: &[(&str, &str)]) -> Result<Config, Faults> {
    Config::resolve(&Raw::from_pairs(pairs.iter().copied()))
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
    assert!(notice.contains("IMAGESVC_API_KEYS"), "without client keys, a word of warning");
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
        (&[("IMAGESVC_TRUSTED_PROXIES", "10.0.0.0/99")], "no network"),
        (&[("IMAGESVC_CORS_ORIGINS", "app.example.com")], "no origin"),
        (&[("IMAGESVC_DOWNLOADS_MAX_AGE", "0")], "longer than zero"),
        (&[("IMAGESVC_DOWNLOADS_MAX_BYTES", "0")], "more than zero"),
        (&[("IMAGESVC_LOG", "warning")], "no log filter"),
    ] {
        let pairs = [&[("IMAGESVC_SANDBOX", "1")], pairs].concat();
        let faults = resolve(&pairs).unwrap_err().to_string();
        assert!(faults.contains(fault) && faults.contains(pairs[1].0), "{faults}");
        assert!(!faults.contains("planted"));
    }
}

#[test]
fn without_a_key_both_ways_out_are_named() {
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
fn a_budget_that_cannot_hold_one_picture_is_a_fault() {
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
fn the_environment_example_lists_every_setting_with_its_default() {
    let example = include_str!("../../.env.example");
    let listed: Vec<&str> = example
        .lines()
        .filter_map(|line| line.trim_start_matches('#').split_once('='))
        .map(|(name, _)| name)
        .filter(|name| SETTINGS.iter().any(|setting| setting.name == *name))
        .collect();
    let names: Vec<&str> = SETTINGS.iter().map(|setting| setting.name).collect();
    assert_eq!(listed, names);
    for setting in SETTINGS {
        let line = format!("#{}={}\n", setting.name, setting.default.unwrap_or_default());
        assert!(example.contains(&line), "{line}");
    }
}

#[test]
fn a_typing_slip_is_named_beside_the_faults() {
    let faults = resolve(&[("IMAGESVC_SANBOX", "true")]).unwrap_err().to_string();
    assert!(faults.contains("IMAGESVC_SANBOX is no setting"), "{faults}");
}

#[test]
fn a_key_may_stand_in_a_file_and_nowhere_twice() {
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
