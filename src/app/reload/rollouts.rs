//! What a rollout that is on does not allow a reload: to pull its traffic away, and to put another version in the place
//! of the one that it is about.
//!
//! What was probed, and the evidence so far, are about one version. That endpoints come and go is normal. But where none
//! stays, or they are spoken to in another way, somebody has most probably deployed another version, and steps that one
//! has earned are not for the other. Whoever means the same version loses little by beginning anew. What a name stands
//! for is not looked at: it changes without a reload, and whoever keeps the name says that it is the same.

use std::collections::HashSet;

use crate::{
    config::{Backend, Config},
    controller::status::ServiceStatus,
    model::name::{BackendName, ServiceName},
    rollout::phase::Phase,
    routing::snapshot::Endpoint,
};

/// Why rollouts that are on do not allow another configuration. Of the services that are `unmoved`, roles and weight are
/// written as before.
pub(super) fn in_the_way<'a>(
    services: impl IntoIterator<Item = &'a ServiceStatus>,
    (before, after): (&Config, &Config),
    unmoved: &HashSet<ServiceName>,
) -> Vec<String> {
    let is_on = |service: &&ServiceStatus| service.rollout.as_ref().is_some_and(|r| r.phase.is_running());
    let running = services.into_iter().filter(is_on);
    running
        .filter_map(|service| {
            let name = &service.name;
            if after.services.iter().all(|other| other.name != *name) {
                let remedy = "end that first, or wait for its end";
                return Some(format!("service `{name}` is gone, and a rollout of it is on: {remedy}"));
            }
            if !unmoved.contains(name) {
                return Some(format!(
                    "service `{name}` has another `stable`, `canary` or `weight`, and a rollout of it is on: end that \
                     first, or wait for its end"
                ));
            }
            let on_trial = on_trial(service)?;
            let what = replaced(backend(before, name, on_trial)?, backend(after, name, on_trial))?;
            Some(format!(
                "backend `{on_trial}` of service `{name}` {what}, and a rollout of it is on, which would go on with what \
                 was seen of another version: end that first (`tidegate rollback {name}`), or wait for its end"
            ))
        })
        .collect()
}

/// The backend that the rollout of a service is about.
fn on_trial(ServiceStatus { stable, canary, rollout, .. }: &ServiceStatus) -> Option<&BackendName> {
    match rollout.as_ref()?.phase {
        // The roles are swapped by now.
        Phase::Promoting { .. } | Phase::Baking { .. } => Some(stable),
        _ => canary.as_ref(),
    }
}

fn backend<'c>(config: &'c Config, service: &ServiceName, name: &BackendName) -> Option<&'c Backend> {
    let service = config.services.iter().find(|other| other.name == *service)?;
    service.backends.iter().find(|backend| backend.name == *name)
}

/// What makes a backend another version, if anything does; to go after its name.
fn replaced(before: &Backend, after: Option<&Backend>) -> Option<&'static str> {
    let endpoints = after.map_or(&[][..], |after| &after.endpoints);
    let is_same = |a: &Endpoint, b: &Endpoint| (&a.host, a.port) == (&b.host, b.port);
    let there = |endpoint: &Endpoint| before.endpoints.iter().find(|other| is_same(endpoint, other));
    let mut stay = endpoints.iter().filter_map(|now| there(now).map(|then| (then, now))).peekable();
    let (Some(after), Some(_)) = (after, stay.peek()) else {
        return Some("has none of the endpoints that it had");
    };
    let is_spoken_to_anew = stay.any(|(then, now)| then.protocol != now.protocol)
        || before.tls != after.tls
        || before.send_proxy_protocol != after.send_proxy_protocol;
    is_spoken_to_anew.then_some("has another protocol, `tls` or `send_proxy_protocol`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::protocol::{Protocol, ProxyProtocol},
        tls::client::Settings,
    };

    fn of(ports: &[u16]) -> Backend {
        let endpoint =
            |port: &u16| Endpoint { host: "v2.test".into(), port: *port, protocol: Protocol::Http1 };
        Backend {
            name: "v2".parse().unwrap(),
            endpoints: ports.iter().map(endpoint).collect(),
            tls: None,
            send_proxy_protocol: None,
        }
    }

    #[test]
    fn endpoints_come_and_go_as_long_as_one_stays_as_it_was() {
        let before = of(&[1, 2]);
        for now in [&[1, 2][..], &[2, 1], &[1], &[2, 3, 4]] {
            assert_eq!(replaced(&before, Some(&of(now))), None, "{now:?}");
        }
        for now in [Some(of(&[3])), Some(of(&[3, 4])), None] {
            assert_eq!(
                replaced(&before, now.as_ref()),
                Some("has none of the endpoints that it had"),
                "{now:?}"
            );
        }
        let mut elsewhere = before.clone();
        elsewhere.endpoints.iter_mut().for_each(|endpoint| endpoint.host = "v3.test".into());
        assert!(replaced(&before, Some(&elsewhere)).is_some());
        // One that is new may speak otherwise; one that stays may not.
        let mut mixed = of(&[1, 2, 3]);
        mixed.endpoints[2].protocol = Protocol::Http2;
        assert_eq!(replaced(&before, Some(&mixed)), None);
        assert_eq!(replaced(&mixed, Some(&before)), None);
        mixed.endpoints[0].protocol = Protocol::Http2;
        let otherwise = Some("has another protocol, `tls` or `send_proxy_protocol`");
        assert_eq!(replaced(&before, Some(&mixed)), otherwise);
        let told = Backend { send_proxy_protocol: Some(ProxyProtocol::V2), ..before.clone() };
        assert_eq!(replaced(&before, Some(&told)), otherwise);
        let secure = Backend { tls: Some(Settings::default()), ..before.clone() };
        assert_eq!(replaced(&before, Some(&secure)), otherwise);
    }
}
