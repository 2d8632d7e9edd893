//! Tests the first and last address of every range, many spellings of addresses, and exceptions.

use proptest::prelude::*;

use super::*;

/// A policy for the ports 80 and 443. Without `hosts`, it allows every public host.
fn new_policy(hosts: &[&str], exceptions: &[&str]) -> Policy {
    let hosts: Vec<_> = hosts.iter().map(|host| HostPattern::parse(host).unwrap()).collect();
    Policy {
        ports: vec![80, 443],
        hosts: (!hosts.is_empty()).then_some(hosts),
        exceptions: exceptions.iter().map(|text| Exception::parse(text).unwrap()).collect(),
    }
}

/// The result of [`check`] for an allowed URL whose server (host and port) is not an exception.
const ALLOWED: Result<bool, UrlError> = Ok(false);

/// The result of [`check`] for an allowed URL whose server is an exception.
const ALLOWED_AS_SERVER_EXCEPTION: Result<bool, UrlError> = Ok(true);

/// Checks a URL. If it is allowed, returns whether its server is an exception.
fn check(policy: &Policy, url: &str) -> Result<bool, UrlError> {
    policy.check_url(url).map(|target| target.is_server_exception)
}

fn is_denied(policy: &Policy, url: &str) -> bool {
    matches!(policy.check_url(url), Err(UrlError::Denied(_)))
}

#[test]
fn the_first_and_last_address_of_each_denied_range_are_denied_and_their_neighbours_are_not() {
    let denied_v4 = DENIED_V4.iter().copied().map(IpNet::from);
    let denied_v6 = DENIED_V6.iter().copied().map(IpNet::from);
    for network in denied_v4.chain(denied_v6) {
        assert!(!is_public(network.addr()), "{network}");
        assert!(!is_public(network.broadcast()), "{network}");
    }
    // Addresses next to the ranges. Those before an IPv6 range are near it, but not adjacent.
    for public in [
        "1.0.0.0",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "168.63.129.15",
        "168.63.129.17",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "191.255.255.255",
        "192.0.1.255",
        "192.0.3.0",
        "192.31.195.255",
        "192.31.197.0",
        "192.52.192.255",
        "192.52.194.0",
        "192.88.98.255",
        "192.88.100.0",
        "192.167.255.255",
        "192.169.0.0",
        "192.175.47.255",
        "192.175.49.0",
        "198.17.255.255",
        "198.20.0.0",
        "198.51.99.255",
        "198.51.101.0",
        "203.0.112.255",
        "203.0.114.0",
        "223.255.255.255",
        "2000::",
        "2000:ffff::",
        "2001:200::",
        "2001:db7:ffff::",
        "2001:db9::",
        "2001:ffff::",
        "2003::",
        "2620:4f:7fff::",
        "2620:4f:8001::",
        "3ffe:ffff::",
        "3fff:1000::",
        "3fff:ffff::",
    ] {
        assert!(is_public(public.parse().unwrap()), "{public}");
    }
}

#[test]
fn addresses_that_are_not_global_unicast_or_that_belong_to_isatap_tunnels_are_denied() {
    // The last two belong to ISATAP tunnels, which lead to an IPv4 address. The others are not global
    // unicast addresses.
    for denied in [
        "1fff::",
        "4000::",
        "::",
        "::1",
        "::a00:1",
        "64:ff9b::a00:1",
        "fec0::1",
        "fe80::1",
        "fd00::1",
        "ff02::1",
        "2a00::200:5efe:a00:1",
        "2a00::5efe:a00:1",
    ] {
        assert!(!is_public(denied.parse().unwrap()), "{denied}");
    }
}

#[test]
fn private_addresses_are_denied_in_many_spellings() {
    let policy = new_policy(&[], &[]);
    for url in [
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://127.0.0.1./",
        "http://１２７.０.０.１/",
        "http://①②⑦.⓪.⓪.①/",
        "http://%31%32%37.0.0.1/",
        "http:\\\\127.0.0.1\\",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[::127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://[2001:0:7f00:1::]/",
        "http://[fec0::1]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[fd00:ec2::254]/",
        "http://100.100.100.200/",
        "http://168.63.129.16/",
        "http://0/",
        "http://[::]/",
    ] {
        assert!(is_denied(&policy, url), "{url}: {:?}", policy.check_url(url));
    }
}

#[test]
fn text_that_is_not_a_web_url_or_has_a_user_or_is_too_long_is_invalid() {
    let policy = new_policy(&[], &[]);
    for url in [
        "",
        "photo.jpg",
        "//example.com/a.jpg",
        "ftp://example.com/",
        "file:///etc/passwd",
        "data:,x",
        "gopher://example.com/",
        "http://user@example.com/",
        "http://user:pw@example.com/",
        "http://:pw@example.com/",
        "http://",
        "http:///",
        "http://[::1",
        "javascript:alert(1)",
        "http://exa mple.com/",
    ] {
        assert!(matches!(policy.check_url(url), Err(UrlError::Invalid(_))), "{url}");
    }
    let long = format!("http://example.com/{}", "a".repeat(MAX_URL_LEN));
    assert!(matches!(policy.check_url(&long), Err(UrlError::Invalid(_))));
}

#[test]
fn ports_outside_the_list_are_denied() {
    assert_eq!(check(&new_policy(&[], &[]), "https://example.com/"), ALLOWED);
    assert_eq!(check(&new_policy(&[], &[]), "http://example.com:443/"), ALLOWED);
    assert!(is_denied(&new_policy(&[], &[]), "http://example.com:8080/"));
    assert!(is_denied(&new_policy(&[], &[]), "http://example.com:22/"));
}

#[test]
fn an_exception_allows_only_its_own_network_or_server() {
    let policy = new_policy(
        &[],
        &["10.1.0.0/16", "pictures.internal:8080", "127.0.0.1:9000", "169.254.0.0/16"],
    );
    // An exception for a network allows this URL.
    assert_eq!(check(&policy, "http://10.1.2.3/"), ALLOWED);
    assert!(is_denied(&policy, "http://10.2.0.1/"));
    // An exception for a network does not allow further ports.
    assert!(is_denied(&policy, "http://10.1.2.3:8080/"));
    assert_eq!(check(&policy, "http://PICTURES.internal.:8080/"), ALLOWED_AS_SERVER_EXCEPTION);
    assert!(is_denied(&policy, "http://pictures.internal:8081/"));
    assert_eq!(check(&policy, "http://127.0.0.1:9000/"), ALLOWED_AS_SERVER_EXCEPTION);
    assert!(is_denied(&policy, "http://127.0.0.1/"));
    assert_eq!(check(&policy, "http://169.254.1.1/"), ALLOWED);
    // No exception allows a metadata endpoint.
    assert!(is_denied(&policy, "http://169.254.169.254/"));
    let metadata_address = "::ffff:169.254.169.254".parse().unwrap();
    let is_server_exception = true;
    assert!(policy.check_address(metadata_address, is_server_exception).is_err());
}

#[test]
fn a_nat64_address_is_checked_as_the_ipv4_address_that_it_contains() {
    // The first exception has no effect, because only the contained IPv4 address is checked.
    let with_exceptions = new_policy(&[], &["64:ff9b::/96", "10.1.0.0/16"]);
    let is_server_exception = false;
    for (address, is_allowed, is_allowed_with_exceptions) in [
        ("64:ff9b::808:808", true, true),     // 8.8.8.8
        ("64:ff9b::a9fe:a9fe", false, false), // 169.254.169.254
        ("64:ff9b::7f00:1", false, false),    // 127.0.0.1
        ("64:ff9b::a00:1", false, false),     // 10.0.0.1
        ("64:ff9b::a01:1", false, true),      // 10.1.0.1
        // With the NAT64 prefix for local use (RFC 8215), the contained IPv4 address does not count.
        ("64:ff9b:1::808:808", false, false),
    ] {
        let address = address.parse().unwrap();
        let result = new_policy(&[], &[]).check_address(address, is_server_exception);
        assert_eq!(result.is_ok(), is_allowed, "{address}");
        let result = with_exceptions.check_address(address, is_server_exception);
        assert_eq!(result.is_ok(), is_allowed_with_exceptions, "{address}");
    }
    let metadata_address = "64:ff9b::a9fe:a9fe".parse().unwrap();
    let is_server_exception = true;
    assert!(with_exceptions.check_address(metadata_address, is_server_exception).is_err());
}

#[test]
fn hosts_outside_the_list_are_denied() {
    let policy = new_policy(&["upload.wikimedia.org", "*.example.com"], &[]);
    for allowed in [
        "https://upload.wikimedia.org/a",
        "https://UPLOAD.wikimedia.org./a",
        "https://a.b.example.com/",
    ] {
        assert_eq!(check(&policy, allowed), ALLOWED, "{allowed}");
    }
    for denied in [
        "https://example.com/",
        "https://badexample.com/",
        "https://wikimedia.org/",
        "http://1.1.1.1/",
    ] {
        assert!(is_denied(&policy, denied), "{denied}");
    }
}

#[test]
fn the_target_of_a_redirect_is_checked_like_a_url() {
    let policy = new_policy(&[], &[]);
    let from = Url::parse("https://example.com/a/b").unwrap();
    let redirected_to =
        |location| policy.check_redirect(&from, location).map(|target| target.url.to_string());
    assert_eq!(redirected_to("../c").unwrap(), "https://example.com/c");
    assert_eq!(redirected_to("//127.0.0.1/"), Err(NOT_FOLLOWED));
    assert_eq!(redirected_to("file:///etc/passwd"), Err(NOT_FOLLOWED));
    assert_eq!(redirected_to("http://["), Err(NOT_FOLLOWED));
}

#[test]
fn invalid_exceptions_and_host_patterns_are_errors() {
    for text in ["10.0.0.0/33", "example.com", "example.com:0", "example.com:http", ":80", "a b:80"]
    {
        assert!(Exception::parse(text).is_err(), "{text}");
    }
    for text in ["*.*.example.com", "exa mple.com", "", "*."] {
        assert!(HostPattern::parse(text).is_err(), "{text}");
    }
}

/// Whether an address is private, determined without the policy's tables. The policy also denies some
/// ranges for which this returns `false`.
fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_documentation()
                || a == 0
                || a >= 240
                || (a == 100 && (64..128).contains(&b))
                || (a == 198 && (18..20).contains(&b))
                || (a == 192 && b == 0 && c == 0)
        }
        IpAddr::V6(v6) if v6.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0] => {
            let [.., a, b, c, d] = v6.octets();
            is_private(Ipv4Addr::new(a, b, c, d).into())
        }
        IpAddr::V6(v6) => {
            let [a, b, ..] = v6.segments();
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
                || a == 0 // IPv4-compatible and the like
                || a == 0x64 // NAT64 with another prefix (RFC 8215)
                || a == 0x2002 // 6to4
                || (a == 0x2001 && b == 0) // Teredo
                || (a & 0xffc0) == 0xfec0 // site-local
        }
    }
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    let range_starts = prop_oneof![
        Just(0x0a00_0000u32), // 10.0.0.0
        Just(0x7f00_0000),    // 127.0.0.0
        Just(0xa9fe_0000),    // 169.254.0.0
        Just(0xac10_0000),    // 172.16.0.0
        Just(0xc0a8_0000),    // 192.168.0.0
        Just(0x6440_0000),    // 100.64.0.0
        Just(0xe000_0000),    // 224.0.0.0
        Just(0xc612_0000),    // 198.18.0.0
        Just(0xc000_0000),    // 192.0.0.0
        Just(0xf000_0000),    // 240.0.0.0
    ];
    let v4 = prop_oneof![
        any::<u32>(),
        (range_starts, -300i32..300).prop_map(|(start, offset)| start.wrapping_add_signed(offset)),
    ];
    let v4 = v4.prop_map(Ipv4Addr::from_bits);
    prop_oneof![
        v4.clone().prop_map(IpAddr::V4),
        v4.clone().prop_map(|v4| IpAddr::V6(v4.to_ipv6_mapped())),
        // IPv4-compatible addresses
        v4.prop_map(|v4| IpAddr::V6(Ipv6Addr::from_bits(u128::from(v4.to_bits())))),
        any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
        // Global unicast addresses, which begin with the bits 001
        any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits >> 3 | 0x2 << 124))),
    ]
}

/// An IPv4 address in one of the spellings that URLs allow.
fn spelling() -> impl Strategy<Value = String> {
    (any::<u32>(), 0..7usize).prop_map(|(bits, spelling)| {
        let [a, b, c, d] = bits.to_be_bytes();
        match spelling {
            0 => format!("{a}.{b}.{c}.{d}"),
            1 => format!("{bits}"),
            2 => format!("{bits:#x}"),
            3 => format!("{a:#o}.{b:#x}.{c}.{d}").replace("0o", "0"),
            4 => format!("{a}.{}", bits & 0x00ff_ffff),
            5 => format!("[::ffff:{a}.{b}.{c}.{d}]"),
            // A percent-encoded first digit, and a trailing dot.
            _ => {
                let a = a.to_string();
                let (first, rest) = a.split_at(1);
                format!("%{:02x}{rest}.{b}.{c}.{d}.", first.as_bytes()[0])
            }
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    #[test]
    fn no_allowed_address_is_private(address in any_address()) {
        let is_server_exception = false;
        if new_policy(&[], &[]).check_address(address, is_server_exception).is_ok() {
            prop_assert!(!is_private(address), "{address}");
        }
    }

    #[test]
    fn no_allowed_url_contains_a_private_address(
        scheme in prop_oneof![
            Just("http://"), Just("HTTPS://"), Just("http:\\\\"), Just("http:///"), Just("http:"),
        ],
        user in prop_oneof![4 => Just(""), 1 => Just("example.com@"), 1 => Just("example.com%40")],
        host in prop_oneof![
            spelling(),
            any_address().prop_map(|address| format!("[{address}]")),
            "[0-9a-fx.:%\\[\\]]{1,20}",
        ],
        rest in "[ -~]{0,20}",
    ) {
        let url = format!("{scheme}{user}{host}{rest}");
        if let Ok(target) = new_policy(&[], &[]).check_url(&url) {
            match target.url.host() {
                Some(Host::Ipv4(v4)) => prop_assert!(!is_private(v4.into()), "{url}"),
                Some(Host::Ipv6(v6)) => prop_assert!(!is_private(v6.into()), "{url}"),
                Some(Host::Domain(name)) => prop_assert!(name.parse::<IpAddr>().is_err(), "{url}"),
                None => prop_assert!(false, "an allowed URL must have a host: {url}"),
            }
        }
    }
}
