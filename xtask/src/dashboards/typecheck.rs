//! Grafana's own types, by TypeScript: what the panels say must be what `@grafana/schema` knows of dashboards, and of the
//! options of each kind of panel.

use super::committed;
use crate::provision::{packagers, run_quietly};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Types of values as JSON has them: Grafana's types name the members of enumerations, JSON their values.
const TYPES: &str = r"
import type { Dashboard, DataQuery, FieldConfig, Panel, RowPanel } from '@grafana/schema';
import type { Options as BarOptions } from '@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen';
import type { FieldConfig as HeatField, Options as HeatOptions } from '@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen';
import type { Options as StatOptions } from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type { FieldConfig as TableField, Options as TableOptions } from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type { FieldConfig as LineField, Options as LineOptions } from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

type Word<T> = T extends `${infer N extends number}` ? N : T;
type Json<T> = T extends string ? `${T}`
    : T extends number ? (number extends T ? number : Word<`${T}`>)
    : T extends boolean | null | undefined ? T
    : T extends (infer U)[] ? Json<U>[]
    : T extends object ? { [K in keyof T]: Json<T[K]> }
    : T;
interface Target extends DataQuery {
    expr: string; legendFormat: string; format: 'time_series' | 'table' | 'heatmap'; instant: boolean; range: boolean; editorMode: 'code';
}
type Fields<C> = { defaults: Omit<Json<FieldConfig>, 'custom'> & { custom: C }; overrides: Json<NonNullable<Panel['fieldConfig']>['overrides']> };
type Of<Type extends string, O, C> = Omit<Json<Panel>, 'type' | 'options' | 'fieldConfig' | 'targets'>
    & { type: Type; options: Json<O>; fieldConfig: Fields<Json<C>>; targets: Json<Target>[] };
type Whole = Json<Dashboard>;
type Row = Json<RowPanel>;
type Timeseries = Of<'timeseries', LineOptions, LineField>;
type Stat = Of<'stat', StatOptions, Record<string, never>>;
type Bargauge = Of<'bargauge', BarOptions, Record<string, never>>;
type Heatmap = Of<'heatmap', HeatOptions, HeatField>;
type Table = Of<'table', TableOptions, TableField>;
";

/// Checks the committed dashboards, and that the check finds a mistake in each kind of panel.
pub fn run() -> Result<()> {
    let packages = packagers::grafana_schema()?;
    let dashboards = committed()?;
    let mut source = TYPES.to_owned();
    let mut samples: Vec<Value> = Vec::new();
    for (number, (_, dashboard)) in dashboards.iter().enumerate() {
        declare(&mut source, number, dashboard)?;
        for panel in dashboard["panels"].as_array().into_iter().flatten() {
            if !samples.iter().any(|sample| sample["type"] == panel["type"]) {
                samples.push(panel.clone());
            }
        }
    }
    compile(&packages, &source)?;
    for (sample, pointer, value) in mistakes(&samples)? {
        let mut broken = sample.clone();
        *broken
            .pointer_mut(pointer)
            .with_context(|| format!("{pointer} of {}", sample["type"]))? = value;
        let mut source = TYPES.to_owned();
        declare(&mut source, 0, &json!({"schemaVersion": 1, "panels": [broken]}))?;
        ensure!(
            compile(&packages, &source).is_err(),
            "TypeScript does not find that {pointer} of a panel {} is wrong",
            sample["type"]
        );
    }
    Ok(())
}

/// A mistake for each kind of panel.
fn mistakes(samples: &[Value]) -> Result<Vec<(&Value, &'static str, Value)>> {
    samples
        .iter()
        .map(|sample| {
            let kind = sample["type"].as_str().context("a panel has a type")?;
            Ok(match kind {
                "timeseries" => (sample, "/fieldConfig/defaults/custom/drawStyle", json!("lines")),
                "stat" => (sample, "/options/colorMode", json!("colour")),
                "bargauge" => (sample, "/options/displayMode", json!("plain")),
                "heatmap" => (sample, "/options/tooltip/mode", json!("one")),
                "table" => (sample, "/options/cellHeight", json!("small")),
                "row" => (sample, "/collapsed", json!("no")),
                other => bail!("no mistake is known for a panel {other}"),
            })
        })
        .collect()
}

/// Declares a dashboard and each of its panels with their types.
fn declare(source: &mut String, number: usize, dashboard: &Value) -> Result<()> {
    let mut whole = dashboard.clone();
    whole["panels"] = json!([]);
    writeln!(source, "const dashboard{number}: Whole = {whole};")?;
    for (at, panel) in dashboard["panels"].as_array().into_iter().flatten().enumerate() {
        let kind = panel["type"].as_str().context("a panel has a type")?;
        let name = kind[..1].to_uppercase() + &kind[1..];
        writeln!(source, "const panel{number}x{at}: {name} = {panel};")?;
    }
    Ok(())
}

fn compile(packages: &Path, source: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("dashboards.ts"), source)?;
    std::os::unix::fs::symlink(packages.join("node_modules"), folder.path().join("node_modules"))?;
    run_quietly(
        Command::new("node")
            .arg(packages.join("node_modules/typescript/bin/tsc"))
            .args(["--noEmit", "--strict", "--skipLibCheck", "--pretty", "false"])
            .args([
                "--module",
                "esnext",
                "--moduleResolution",
                "bundler",
                "--target",
                "es2022",
            ])
            .args(["--types", ""])
            .arg("dashboards.ts")
            .current_dir(folder.path()),
    )
    .map(drop)
}
