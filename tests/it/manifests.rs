//! The manifests in k8s/ and the configuration that they mount fit together.

use std::{fs, path::Path};

use tidegate::config::{Config, diagnostic::render, load::parse};
use yaml_rust2::{Yaml, YamlLoader};

/// The one document of a manifest.
fn manifest(name: &str) -> Yaml {
    let text = fs::read_to_string(Path::new("k8s").join(name)).unwrap();
    let mut documents = YamlLoader::load_from_str(&text).unwrap();
    assert_eq!(documents.len(), 1, "{name}");
    documents.remove(0)
}

fn configured() -> Config {
    let text = fs::read_to_string("k8s/tidegate.toml").unwrap();
    match parse("k8s/tidegate.toml", &text) {
        Ok((config, warnings)) => {
            assert!(warnings.is_empty(), "{}", render(&warnings));
            config
        }
        Err(errors) => panic!("{}", render(&errors)),
    }
}

/// The entry of a list with this name.
#[track_caller]
fn named<'a>(list: &'a Yaml, name: &str) -> &'a Yaml {
    let mut entries = list.as_vec().expect("a list").iter();
    entries.find(|entry| entry["name"].as_str() == Some(name)).unwrap_or_else(|| panic!("no `{name}`"))
}

#[test]
fn the_pod_has_the_ports_the_volume_and_the_time_that_the_configuration_needs() {
    let (deployment, config) = (manifest("deployment.yaml"), configured());
    let pod = &deployment["spec"]["template"]["spec"];
    let container = named(&pod["containers"], "tidegate");
    let port = |name| named(&container["ports"], name)["containerPort"].as_i64();
    assert_eq!(port("http"), Some(config.listeners[0].address.port().into()));
    assert_eq!(port("admin"), config.admin.as_ref().map(|admin| admin.address.port().into()));
    let store = config.store.expect("rollouts outlive the process");
    let mounted = named(&container["volumeMounts"], "state");
    assert_eq!(mounted["mountPath"].as_str(), store.path.to_str());
    assert!(!named(&pod["volumes"], "state")["emptyDir"].is_badvalue());
    let needed = config.shutdown.delay + config.shutdown.deadline;
    let granted = pod["terminationGracePeriodSeconds"].as_i64().unwrap();
    assert!(granted > needed.as_secs().try_into().unwrap(), "{granted} s for {needed:?}");
    // What runs in two pods at once must not be what only one may have.
    assert_eq!(deployment["spec"]["replicas"].as_i64(), Some(1));
}

#[test]
fn with_a_claim_one_pod_ends_before_the_next_begins() {
    let (patch, claim) =
        (manifest("persistent/deployment.yaml"), manifest("persistent/persistentvolumeclaim.yaml"));
    let of = manifest("deployment.yaml");
    assert_eq!(patch["metadata"]["name"], of["metadata"]["name"]);
    assert_eq!(patch["spec"]["strategy"]["type"].as_str(), Some("Recreate"));
    assert!(patch["spec"]["strategy"]["rollingUpdate"].is_null(), "else it is merged with what it replaces");
    let volume = named(&patch["spec"]["template"]["spec"]["volumes"], "state");
    assert!(volume["emptyDir"].is_null(), "a volume is one thing");
    assert_eq!(volume["persistentVolumeClaim"]["claimName"], claim["metadata"]["name"]);
}
