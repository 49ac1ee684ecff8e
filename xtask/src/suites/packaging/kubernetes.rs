//! The Kubernetes manifests: built by kustomize, held against the schemas of Kubernetes and of the Prometheus Operator,
//! and against what the systemd unit says of privileges.

use crate::packaging::alerts;
use crate::provision::{packagers, run_quietly};
use crate::suite::service::{LEAST_PRIVILEGE, ambient_capabilities};
use crate::workspace::root;
use anyhow::{Context as _, Result, bail, ensure};
use rustix::thread::CapabilitySet;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

/// What can be applied, and the capabilities that it gives beyond the least.
const LAYERS: [(&str, &[&str]); 4] = [
    ("base", &[]),
    ("monitoring", &[]),
    ("kprobes", &["SYS_ADMIN"]),
    ("old-kernels", &["SYS_ADMIN", "SYS_RESOURCE"]),
];
/// Kubernetes releases whose schemas the manifests must fit; `appArmorProfile` came with 1.30.
const RELEASES: [&str; 2] = ["1.30.0", "1.37.0"];
const YAMLLINT: &str = "{extends: default, rules: {line-length: disable, comments-indentation: disable}}";

/// Reads a manifest of the operator's kinds and fails if it does not fit its schema. A field that the schema does not
/// know passes, as it does in a cluster, where it is dropped.
const OPERATOR: &str = r"
const kind = process.argv[1];
const text = require('node:fs').readFileSync(0, 'utf8');
import('@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1').then(models => {
    new models[kind](JSON.parse(text)).validate();
}).catch(error => { console.error(String(error)); process.exit(1); });
";

/// Checks all of them.
pub fn check() -> Result<()> {
    alerts::check()?;
    let kustomize = packagers::kustomize()?;
    let python = packagers::python_tools()?;
    let schemas = packagers::operator_schemas()?;
    run_quietly(
        Command::new("python3")
            .args([
                "-m",
                "yamllint",
                "--strict",
                "-d",
                YAMLLINT,
                "packaging/kubernetes",
            ])
            .current_dir(root())
            .env("PYTHONPATH", &python),
    )?;
    let folder = tempfile::tempdir()?;
    for (layer, more) in LAYERS {
        let text = run_quietly(
            Command::new(&kustomize)
                .args(["build", &format!("packaging/kubernetes/{layer}")])
                .current_dir(root()),
        )?;
        let objects = objects(&python, &text)?;
        let (ours, operators): (Vec<_>, Vec<_>) = objects
            .iter()
            .partition(|object| object["apiVersion"] != "monitoring.coreos.com/v1");
        fits_kubernetes(&python, folder.path(), &ours)
            .with_context(|| format!("{layer} against Kubernetes"))?;
        let kinds: Vec<_> = operators
            .iter()
            .filter_map(|object| object["kind"].as_str())
            .collect();
        let expected: &[&str] = if layer == "monitoring" {
            &["PrometheusRule", "ServiceMonitor"]
        } else {
            &[]
        };
        ensure!(kinds == expected, "{layer} has {kinds:?}");
        for object in operators {
            fits_operator(&schemas, object).with_context(|| format!("{layer} against the operator"))?;
        }
        least_privilege(&ours, more).with_context(|| format!("privileges of {layer}"))?;
    }
    Ok(())
}

/// The documents of a stream of YAML.
fn objects(python: &Path, text: &[u8]) -> Result<Vec<Value>> {
    const SCRIPT: &str =
        "import json, sys, yaml; json.dump(list(yaml.safe_load_all(open(sys.argv[1]))), sys.stdout)";
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), text)?;
    let json = run_quietly(
        Command::new("python3")
            .args(["-c", SCRIPT])
            .arg(file.path())
            .env("PYTHONPATH", python),
    )?;
    serde_json::from_slice(&json).context("YAML as JSON")
}

fn fits_kubernetes(python: &Path, folder: &Path, objects: &[&Value]) -> Result<()> {
    // One document a file; JSON is YAML.
    let mut files = Vec::new();
    for (number, object) in objects.iter().enumerate() {
        let file = folder.join(format!("{number}.yaml"));
        fs::write(&file, object.to_string())?;
        files.push(file);
    }
    for release in RELEASES {
        run_quietly(
            Command::new("python3")
                .args([
                    "-c",
                    "from kubernetes_validate.__main__ import main; import sys; sys.exit(main())",
                ])
                .args(["--strict", "--kubernetes-version", release])
                .args(&files)
                .env("PYTHONPATH", python),
        )?;
    }
    Ok(())
}

fn fits_operator(schemas: &Path, object: &Value) -> Result<()> {
    use std::io::Write as _;
    use std::process::Stdio;
    let kind = object["kind"].as_str().context("an object has a kind")?;
    let mut node = Command::new("node")
        .args(["--eval", OPERATOR, kind])
        .current_dir(schemas)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start node")?;
    node.stdin
        .take()
        .context("node has an input")?
        .write_all(object.to_string().as_bytes())?;
    let output = node.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{kind}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// The capabilities are those of the systemd unit, and nothing else is open.
fn least_privilege(objects: &[&Value], more: &[&str]) -> Result<()> {
    let set = objects
        .iter()
        .find(|object| object["kind"] == "DaemonSet")
        .context("there is no DaemonSet")?;
    let pod = &set["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let context = &container["securityContext"];
    let mut given = CapabilitySet::empty();
    for name in context["capabilities"]["add"].as_array().into_iter().flatten() {
        let Some(one) = name.as_str().and_then(CapabilitySet::from_name) else {
            bail!("there is no capability {name}");
        };
        given |= one;
    }
    let mut expected = ambient_capabilities(LEAST_PRIVILEGE)?;
    for name in more {
        expected |= CapabilitySet::from_name(name).context("a known capability")?;
    }
    ensure!(given == expected, "it has {given:?}, not {expected:?}");
    for (what, found, wanted) in [
        (
            "drop",
            &context["capabilities"]["drop"],
            serde_json::json!(["ALL"]),
        ),
        (
            "readOnlyRootFilesystem",
            &context["readOnlyRootFilesystem"],
            true.into(),
        ),
        (
            "allowPrivilegeEscalation",
            &context["allowPrivilegeEscalation"],
            false.into(),
        ),
        ("privileged", &context["privileged"], Value::Null),
        ("hostNetwork", &pod["hostNetwork"], Value::Null),
        ("hostPID", &pod["hostPID"], true.into()),
        (
            "automountServiceAccountToken",
            &pod["automountServiceAccountToken"],
            false.into(),
        ),
        ("enableServiceLinks", &pod["enableServiceLinks"], false.into()),
        (
            "liveness",
            &container["livenessProbe"]["httpGet"]["path"],
            "/healthz".into(),
        ),
        (
            "readiness",
            &container["readinessProbe"]["httpGet"]["path"],
            "/readyz".into(),
        ),
    ] {
        ensure!(*found == wanted, "{what} is {found}, not {wanted}");
    }
    ensure!(
        objects
            .iter()
            .all(|object| object["kind"] != "ClusterRole" && object["kind"] != "Role"),
        "sdtrace needs nothing of the Kubernetes API"
    );
    Ok(())
}
