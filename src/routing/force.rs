//! Rules that decide a request's role before any weight does: testers, previews.
//!
//! The order is fixed, whatever the order in the file: the preview, then what a header says, a cookie,
//! a query parameter. So a tester who sends a header gets what the header says, whatever cookie an
//! earlier visit left behind.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    condition::{Head, HeaderTest, PairTest},
    split::Reason,
    table::bare_host,
};
use crate::model::role::Role;

/// What decides the role of some requests.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Overrides {
    /// What leads to the canary, and never to stable.
    pub preview: Option<Preview>,
    rules: Vec<Force>,
}

/// Leads to the backend that holds the canary's role, whatever its weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preview {
    /// Hosts, lower case, without port, that it is asked for by.
    pub hostnames: Vec<String>,
    /// A header field that it is asked for by.
    pub header: Option<HeaderTest>,
    /// Who may ask for it.
    pub from: Networks,
}

/// Gives requests that pass a test a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Force {
    /// The role.
    pub role: Role,
    /// The test.
    pub by: By,
    /// Whose requests it is applied to.
    pub from: Networks,
}

/// What a role is forced by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// A header field.
    Header(HeaderTest),
    /// A cookie.
    Cookie(PairTest),
    /// A query parameter.
    Query(PairTest),
}

impl By {
    fn passes(&self, head: &Head<'_>) -> bool {
        match self {
            Self::Header(test) => test.passes(head.headers),
            Self::Cookie(test) => test.passes_in_cookies(head.headers),
            Self::Query(test) => test.passes_in_query(head.query),
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::Header(_) => Reason::Header,
            Self::Cookie(_) => Reason::Cookie,
            Self::Query(_) => Reason::Query,
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Header(_) => 0,
            Self::Cookie(_) => 1,
            Self::Query(_) => 2,
        }
    }
}

/// Networks of clients; nothing means all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Networks(pub Option<Box<[IpNet]>>);

impl Networks {
    /// Whether a client is in one of them.
    pub fn contain(&self, client: IpAddr) -> bool {
        self.0.as_ref().is_none_or(|networks| networks.iter().any(|network| network.contains(&client)))
    }
}

impl Overrides {
    /// A preview, if there is one, and rules in the order of the file.
    pub fn new(preview: Option<Preview>, mut rules: Vec<Force>) -> Self {
        rules.sort_by_key(|rule| rule.by.rank());
        Self { preview, rules }
    }

    /// Whether it decides nothing.
    pub fn is_empty(&self) -> bool {
        self.preview.is_none() && self.rules.is_empty()
    }

    /// Whether a rule gives requests this role; the preview is not a rule.
    pub fn can_force(&self, role: Role) -> bool {
        self.rules.iter().any(|rule| rule.role == role)
    }

    /// The role that a request is given, and by what; nothing for one that nobody forces.
    pub fn decide(&self, head: &Head<'_>, client: IpAddr) -> Option<(Role, Reason)> {
        if let Some(preview) = &self.preview
            && preview.asked_for(head)
            && preview.from.contain(client)
        {
            return Some((Role::Canary, Reason::Preview));
        }
        let rule = self.rules.iter().find(|rule| rule.by.passes(head) && rule.from.contain(client))?;
        Some((rule.role, rule.by.reason()))
    }
}

impl Preview {
    fn asked_for(&self, head: &Head<'_>) -> bool {
        if self.header.as_ref().is_some_and(|test| test.passes(head.headers)) {
            return true;
        }
        let host = bare_host(head.authority);
        self.hostnames.iter().any(|hostname| **hostname == *host)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

    use super::*;
    use crate::routing::condition::Test;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 2, 3));
    const AWAY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn at_home() -> Networks {
        Networks(Some(["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()].into()))
    }

    fn header(value: &str) -> HeaderTest {
        HeaderTest { name: HeaderName::from_static("x-side"), test: Test::Exact(value.into()) }
    }

    fn pair(value: &str) -> PairTest {
        PairTest { name: "side".into(), test: Test::Exact(value.into()) }
    }

    fn force(role: Role, by: By) -> Force {
        Force { role, by, from: Networks::default() }
    }

    #[track_caller]
    fn check(
        overrides: &Overrides,
        fields: &[(HeaderName, &'static str)],
        query: &str,
        expected: Option<(Role, Reason)>,
    ) {
        let fields = fields.iter().map(|(n, v)| (n.clone(), HeaderValue::from_static(v)));
        let headers: HeaderMap = fields.collect();
        let head = Head {
            authority: "Preview.test:80",
            path: "/",
            query: Some(query),
            method: &Method::GET,
            headers: &headers,
        };
        assert_eq!(overrides.decide(&head, AWAY), expected);
    }

    #[test]
    fn a_header_counts_for_more_than_a_cookie_and_that_for_more_than_the_query() {
        let rules = vec![
            force(Role::Canary, By::Query(pair("c"))),
            force(Role::Canary, By::Cookie(pair("c"))),
            force(Role::Stable, By::Cookie(pair("s"))),
            force(Role::Stable, By::Header(header("s"))),
            force(Role::Canary, By::Header(header("c"))),
        ];
        let overrides = Overrides::new(None, rules);
        let side = || HeaderName::from_static("x-side");
        check(&overrides, &[], "", None);
        check(&overrides, &[], "side=c", Some((Role::Canary, Reason::Query)));
        check(&overrides, &[(header::COOKIE, "side=s")], "side=c", Some((Role::Stable, Reason::Cookie)));
        let both = [(header::COOKIE, "side=s"), (side(), "c")];
        check(&overrides, &both, "", Some((Role::Canary, Reason::Header)));
        // Of two rules by headers the first one.
        check(&overrides, &[(side(), "c"), (side(), "s")], "", Some((Role::Stable, Reason::Header)));
    }

    #[test]
    fn a_preview_comes_first_and_is_asked_for_by_host_or_header() {
        let preview = |hostnames: &[&str], header| {
            let hostnames = hostnames.iter().map(|h| (*h).to_owned()).collect();
            let preview = Preview { hostnames, header, from: Networks::default() };
            Overrides::new(Some(preview), vec![force(Role::Stable, By::Query(pair("s")))])
        };
        let canary = Some((Role::Canary, Reason::Preview));
        check(&preview(&["preview.test"], None), &[], "side=s", canary);
        check(&preview(&["other.test"], None), &[], "side=s", Some((Role::Stable, Reason::Query)));
        let by_header = preview(&[], Some(header("p")));
        check(&by_header, &[(HeaderName::from_static("x-side"), "p")], "", canary);
        check(&by_header, &[], "", None);
    }

    #[test]
    fn strangers_force_nothing() {
        let rule = Force { from: at_home(), ..force(Role::Canary, By::Query(pair("c"))) };
        let preview = Preview { hostnames: vec!["preview.test".to_owned()], header: None, from: at_home() };
        let overrides = Overrides::new(Some(preview), vec![rule]);
        check(&overrides, &[], "side=c", None);
        for (client, at_home) in [(HOME, true), (AWAY, false), ("fd12::1".parse().unwrap(), true)] {
            let headers = HeaderMap::new();
            let head = Head {
                authority: "x",
                path: "/",
                query: Some("side=c"),
                method: &Method::GET,
                headers: &headers,
            };
            assert_eq!(overrides.decide(&head, client).is_some(), at_home, "{client}");
        }
    }
}
