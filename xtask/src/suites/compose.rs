//! `packaging/compose`: Prometheus, Grafana and sdtrace in one go. Nothing here can run containers, so the files are held
//! against the compose specification, against each other and against the rest of the project.

use crate::provision::{packagers, promtool, run_quietly};
use crate::suite::service::{LEAST_PRIVILEGE, ambient_capabilities};
use crate::workspace::root;
use anyhow::{Context as _, Result, ensure};
use rustix::thread::CapabilitySet;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Parses a compose file as strictly as the specification is: an unknown key or word is an error.
const PARSE: &str =
    "import sys, compose_spec; compose_spec.PyCompose.from_yaml(open(sys.argv[1]).read()).validate()";
const YAMLLINT: &str = "{extends: default, rules: {line-length: disable, comments-indentation: disable}}";

fn folder() -> PathBuf {
    root().join("packaging/compose")
}

fn read(name: &str) -> Result<Value> {
    let path = folder().join(name);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    serde_yaml_ng::from_str(&text).with_context(|| path.display().to_string())
}

/// Checks all of it.
pub fn check() -> Result<()> {
    let tools = packagers::python_tools()?;
    let python = |arguments: &[&str], file: &Path| {
        run_quietly(
            Command::new("python3")
                .args(arguments)
                .arg(file)
                .env("PYTHONPATH", &tools),
        )
    };
    let file = folder().join("compose.yaml");
    python(&["-m", "yamllint", "--strict", "-d", YAMLLINT], &folder())?;
    python(&["-c", PARSE], &file)?;
    // The parser is one that finds something.
    let temporary = tempfile::tempdir()?;
    let wrong = temporary.path().join("wrong.yaml");
    fs::write(&wrong, fs::read_to_string(&file)?.replace("cap_add:", "cap_ad:"))?;
    ensure!(
        python(&["-c", PARSE], &wrong).is_err(),
        "a misspelt key of a compose file is not found"
    );

    let compose = read("compose.yaml")?;
    let services = compose["services"].as_object().context("there are no services")?;
    for (name, service) in services {
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let source = volume["source"].as_str().context("a volume has a source")?;
            let there = volume["type"] != "bind" || folder().join(source).exists();
            ensure!(there, "{name} mounts {source}, which does not exist");
        }
        for other in service["depends_on"].as_array().into_iter().flatten() {
            let known = other.as_str().is_some_and(|other| services.contains_key(other));
            ensure!(known, "{name} depends on {other}, which does not exist");
        }
        for port in service["ports"].as_array().into_iter().flatten() {
            let port = port.as_str().unwrap_or_default();
            ensure!(
                port.starts_with("127.0.0.1:"),
                "{name} is open to other machines: {port}"
            );
        }
    }
    privileges(&services["sdtrace"])?;

    // Prometheus finds the rules where they are mounted, beside its configuration.
    fs::copy(
        folder().join("prometheus.yml"),
        temporary.path().join("prometheus.yml"),
    )?;
    fs::copy(
        root().join("dashboards/rules.yml"),
        temporary.path().join("rules.yml"),
    )?;
    run_quietly(
        Command::new(promtool::provide()?)
            .args(["check", "config"])
            .arg(temporary.path().join("prometheus.yml")),
    )?;
    let prometheus = read("prometheus.yml")?;
    let target = &prometheus["scrape_configs"][0]["static_configs"][0]["targets"][0];
    let source = &read("grafana/provisioning/datasources/prometheus.yaml")?["datasources"][0];
    for (address, service) in [(target, "sdtrace:"), (&source["url"], "http://prometheus:")] {
        let address = address.as_str().unwrap_or_default();
        ensure!(address.starts_with(service), "{address:?} is not {service}");
    }
    let provider = &read("grafana/provisioning/dashboards/sdtrace.yaml")?["providers"][0];
    let mounts = services["grafana"]["volumes"]
        .as_array()
        .context("grafana mounts nothing")?;
    ensure!(
        mounts.iter().any(|mount| {
            mount["target"] == provider["options"]["path"] && mount["source"] == "../../dashboards/grafana"
        }),
        "grafana's dashboards are not where its provisioning looks for them"
    );
    Ok(())
}

/// The capabilities are those of the systemd unit, with the one that Debian's default asks for.
fn privileges(service: &Value) -> Result<()> {
    let mut given = CapabilitySet::empty();
    for name in service["cap_add"].as_array().into_iter().flatten() {
        let name = name.as_str().unwrap_or_default();
        given |= CapabilitySet::from_name(name).with_context(|| format!("there is no capability {name}"))?;
    }
    let mut expected = ambient_capabilities(LEAST_PRIVILEGE)?;
    expected |= CapabilitySet::SYS_ADMIN;
    ensure!(given == expected, "it has {given:?}, not {expected:?}");
    ensure!(
        service["cap_drop"] == serde_json::json!(["ALL"])
            && service["read_only"] == true
            && service["pid"] == "host",
        "it does not drop all capabilities, can write, or sees no processes"
    );
    Ok(())
}
