//! Grafana's JSON, as far as these dashboards need it. Panels flow from left to right, row by row, so that none lies on
//! another.

use serde_json::{Value, json};

/// The version of the dashboard schema that is written, that of Grafana 11; newer ones read it and convert it themselves.
const SCHEMA: u32 = 39;
/// Width of a dashboard in Grafana's columns.
const COLUMNS: u32 = 24;

/// How a panel shows its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Lines over time.
    Lines,
    /// Areas over time that add up.
    Stacked,
    /// One number, or a few.
    Number,
    /// A value of a label instead of a number.
    Text,
    /// Bars with a limit.
    Bars,
    /// A histogram over time.
    Heatmap,
    /// A table of instant values, one column a query; the columns that are left of the labels, in their order.
    Table(Vec<&'static str>),
}

/// A question to Prometheus.
#[derive(Clone, Debug)]
pub struct Query {
    /// The expression.
    pub expression: String,
    /// The name of its lines, or the title of its column in a table.
    pub legend: &'static str,
}

/// Which series the variables choose; `@` stands for it in the expressions of the dashboards.
pub const CHOSEN: &str = r#"cluster=~"$cluster", job=~"$job", instance=~"$instance""#;

/// A query. `@` in the expression is replaced by [`CHOSEN`].
#[must_use]
pub fn query(expression: &str, legend: &'static str) -> Query {
    Query {
        expression: expression.replace('@', CHOSEN),
        legend,
    }
}

/// A panel.
#[derive(Clone, Debug)]
pub struct Panel {
    title: &'static str,
    description: &'static str,
    kind: Kind,
    unit: &'static str,
    queries: Vec<Query>,
    size: (u32, u32),
    steps: Vec<(Option<f64>, &'static str)>,
    mappings: Vec<(&'static str, &'static str, &'static str)>,
    columns: Vec<(&'static str, &'static str)>,
    links: Vec<(&'static str, &'static str, &'static str)>,
    max: Option<f64>,
}

impl Panel {
    /// A panel of half the width. `unit` is one of Grafana's.
    #[must_use]
    pub fn new(
        kind: Kind,
        title: &'static str,
        description: &'static str,
        unit: &'static str,
        queries: Vec<Query>,
    ) -> Self {
        let size = match kind {
            Kind::Number | Kind::Text => (4, 4),
            Kind::Table(_) => (24, 9),
            _ => (12, 8),
        };
        Self {
            title,
            description,
            kind,
            unit,
            queries,
            size,
            steps: vec![(None, "text")],
            mappings: Vec::new(),
            columns: Vec::new(),
            links: Vec::new(),
            max: None,
        }
    }

    /// Width in 24ths of the dashboard, and height.
    #[must_use]
    pub const fn size(mut self, width: u32, height: u32) -> Self {
        self.size = (width, height);
        self
    }

    /// Colours from these values on.
    #[must_use]
    pub fn steps(mut self, base: &'static str, steps: &[(f64, &'static str)]) -> Self {
        self.steps = vec![(None, base)];
        self.steps
            .extend(steps.iter().map(|&(from, colour)| (Some(from), colour)));
        self
    }

    /// Words with colours instead of these values.
    #[must_use]
    pub fn words(mut self, words: &[(&'static str, &'static str, &'static str)]) -> Self {
        self.mappings = words.to_vec();
        self
    }

    /// A unit of its own for a column of a table.
    #[must_use]
    pub fn column(mut self, title: &'static str, unit: &'static str) -> Self {
        self.columns.push((title, unit));
        self
    }

    /// A link on the cells of a column.
    #[must_use]
    pub fn link(mut self, column: &'static str, title: &'static str, url: &'static str) -> Self {
        self.links.push((column, title, url));
        self
    }

    /// The end of the scale.
    #[must_use]
    pub const fn max(mut self, max: f64) -> Self {
        self.max = Some(max);
        self
    }

    fn json(&self, id: u32, at: (u32, u32)) -> Value {
        let mut defaults = json!({
            "unit": self.unit,
            "mappings": self.mappings(),
            "thresholds": {
                "mode": "absolute",
                "steps": self.steps.iter()
                    .map(|(value, color)| json!({"color": color, "value": value}))
                    .collect::<Vec<_>>(),
            },
            "color": {"mode": self.colours()},
            "custom": self.custom(),
        });
        if self.kind != Kind::Heatmap && self.unit != "dateTimeFromNow" {
            defaults["min"] = json!(0);
        }
        if let Some(max) = self.max {
            defaults["max"] = json!(max);
        }
        json!({
            "id": id,
            "type": self.plugin(),
            "title": self.title,
            "description": self.description,
            "datasource": datasource(),
            "gridPos": {"x": at.0, "y": at.1, "w": self.size.0, "h": self.size.1},
            "targets": self.targets(),
            "transformations": self.transformations(),
            "fieldConfig": {"defaults": defaults, "overrides": self.overrides()},
            "options": self.options(),
        })
    }

    const fn plugin(&self) -> &'static str {
        match self.kind {
            Kind::Lines | Kind::Stacked => "timeseries",
            Kind::Number | Kind::Text => "stat",
            Kind::Bars => "bargauge",
            Kind::Heatmap => "heatmap",
            Kind::Table(_) => "table",
        }
    }

    fn colours(&self) -> &'static str {
        match self.kind {
            // The same word has the same colour on every panel.
            Kind::Lines | Kind::Stacked => "palette-classic-by-name",
            _ => "thresholds",
        }
    }

    fn mappings(&self) -> Value {
        if self.mappings.is_empty() {
            return json!([]);
        }
        let options: serde_json::Map<_, _> = self
            .mappings
            .iter()
            .enumerate()
            .map(|(index, (value, text, color))| {
                let result = json!({"text": text, "color": color, "index": index});
                ((*value).to_owned(), result)
            })
            .collect();
        json!([{"type": "value", "options": options}])
    }

    fn custom(&self) -> Value {
        match self.kind {
            Kind::Lines | Kind::Stacked => {
                let stacked = self.kind == Kind::Stacked;
                json!({
                    "drawStyle": "line",
                    "lineWidth": 1,
                    "fillOpacity": if stacked { 40 } else { 8 },
                    "showPoints": "auto",
                    "spanNulls": false,
                    "stacking": {"mode": if stacked { "normal" } else { "none" }, "group": "A"},
                    "thresholdsStyle": {"mode": if self.steps.len() > 1 { "dashed" } else { "off" }},
                })
            }
            Kind::Table(_) => json!({"align": "auto", "cellOptions": {"type": "auto"}, "inspect": false}),
            Kind::Heatmap => json!({"hideFrom": {"legend": false, "tooltip": false, "viz": false}}),
            Kind::Number | Kind::Text | Kind::Bars => json!({}),
        }
    }

    fn targets(&self) -> Vec<Value> {
        let over_time = matches!(self.kind, Kind::Lines | Kind::Stacked | Kind::Heatmap);
        let format = match self.kind {
            Kind::Table(_) => "table",
            Kind::Heatmap => "heatmap",
            _ => "time_series",
        };
        self.queries
            .iter()
            .zip('A'..)
            .map(|(query, letter)| {
                json!({
                    "refId": letter.to_string(),
                    "datasource": datasource(),
                    "expr": query.expression,
                    "legendFormat": query.legend,
                    "format": format,
                    "instant": !over_time,
                    "range": over_time,
                    "editorMode": "code",
                })
            })
            .collect()
    }

    fn transformations(&self) -> Vec<Value> {
        let Kind::Table(labels) = &self.kind else {
            return Vec::new();
        };
        let mut names = serde_json::Map::new();
        let mut places = serde_json::Map::new();
        for (at, label) in labels.iter().enumerate() {
            places.insert((*label).to_owned(), json!(at));
        }
        for (at, (query, letter)) in self.queries.iter().zip('A'..).enumerate() {
            // With one query alone Grafana does not number the column.
            let column = if self.queries.len() == 1 {
                "Value".to_owned()
            } else {
                format!("Value #{letter}")
            };
            places.insert(column.clone(), json!(labels.len() + at));
            names.insert(column, json!(query.legend));
        }
        vec![
            json!({"id": "merge", "options": {}}),
            json!({"id": "organize", "options": {
                "excludeByName": {"Time": true, "__name__": true},
                "indexByName": places,
                "renameByName": names,
            }}),
        ]
    }

    fn overrides(&self) -> Vec<Value> {
        let by_name = |name: &str, properties: Value| json!({"matcher": {"id": "byName", "options": name}, "properties": properties});
        let mut overrides = Vec::new();
        if matches!(self.kind, Kind::Lines | Kind::Stacked) {
            // A verdict keeps its colour, whatever else is on the panel.
            for (name, colour) in [("trusted", "green"), ("suspect", "orange"), ("broken", "red")] {
                if self
                    .queries
                    .iter()
                    .any(|query| query.legend.contains("{{verdict}}"))
                {
                    let colour = json!({"mode": "fixed", "fixedColor": colour});
                    overrides.push(by_name(name, json!([{"id": "color", "value": colour}])));
                }
            }
        }
        for (title, unit) in &self.columns {
            overrides.push(by_name(title, json!([{"id": "unit", "value": unit}])));
        }
        for (column, title, url) in &self.links {
            let links = json!([{"title": title, "url": url, "targetBlank": false}]);
            overrides.push(by_name(column, json!([{"id": "links", "value": links}])));
        }
        overrides
    }

    fn options(&self) -> Value {
        let reduced = |fields: &str| json!({"calcs": ["lastNotNull"], "fields": fields, "values": false});
        match self.kind {
            Kind::Lines | Kind::Stacked => json!({
                "legend": {"calcs": ["lastNotNull", "max"], "displayMode": "table", "placement": "bottom",
                    "showLegend": true, "sortBy": "Max", "sortDesc": true},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }),
            Kind::Number | Kind::Text => {
                let text = self.kind == Kind::Text;
                json!({
                    "colorMode": "value", "graphMode": "none", "justifyMode": "auto", "orientation": "auto",
                    "percentChangeColorMode": "standard", "showPercentChange": false,
                    "textMode": if text { "name" } else if self.queries.len() > 1 { "value_and_name" } else { "value" },
                    "wideLayout": true, "reduceOptions": reduced(""),
                })
            }
            Kind::Bars => json!({
                "displayMode": "basic", "orientation": "horizontal", "showUnfilled": true, "valueMode": "color",
                "namePlacement": "auto", "sizing": "auto", "maxVizHeight": 300, "minVizHeight": 16, "minVizWidth": 8,
                "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": false},
                "reduceOptions": reduced(""),
            }),
            Kind::Heatmap => json!({
                "calculate": false, "cellGap": 1,
                "color": {"mode": "scheme", "scheme": "Oranges", "exponent": 0.5, "fill": "dark-orange",
                    "reverse": false, "scale": "exponential", "steps": 64},
                "exemplars": {"color": "rgba(255,0,255,0.7)"},
                "filterValues": {"le": 1e-9},
                "legend": {"show": true},
                "rowsFrame": {"layout": "auto"},
                "showValue": "never",
                "tooltip": {"mode": "single", "yHistogram": false, "showColorScale": false},
                "yAxis": {"axisPlacement": "left", "reverse": false, "unit": self.unit},
            }),
            Kind::Table(_) => json!({"cellHeight": "sm", "showHeader": true, "frameIndex": 0}),
        }
    }
}

/// Panels under a heading.
#[derive(Clone, Debug)]
pub struct Section {
    /// Heading.
    pub title: &'static str,
    /// Its panels.
    pub panels: Vec<Panel>,
}

/// A dashboard.
#[derive(Clone, Debug)]
pub struct Dashboard {
    /// What links name it by; stable.
    pub uid: &'static str,
    /// Title.
    pub title: &'static str,
    /// What it is for.
    pub description: &'static str,
    /// Whether one node is shown, or as many as are chosen.
    pub one_node: bool,
    /// The panels.
    pub sections: Vec<Section>,
}

impl Dashboard {
    /// What Grafana imports.
    #[must_use]
    pub fn json(&self) -> Value {
        let (mut panels, mut id, mut y) = (Vec::new(), 0, 0);
        for section in &self.sections {
            id += 1;
            panels.push(json!({
                "id": id, "type": "row", "title": section.title, "collapsed": false, "panels": [],
                "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
            }));
            y += 1;
            let (mut x, mut tallest) = (0, 0);
            for panel in &section.panels {
                id += 1;
                if x + panel.size.0 > COLUMNS {
                    y += tallest;
                    (x, tallest) = (0, 0);
                }
                panels.push(panel.json(id, (x, y)));
                x += panel.size.0;
                tallest = tallest.max(panel.size.1);
            }
            y += tallest;
        }
        json!({
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["sdtrace"],
            "editable": true,
            "graphTooltip": 1,
            "schemaVersion": SCHEMA,
            "version": 1,
            "timezone": "browser",
            "refresh": "1m",
            "time": {"from": "now-6h", "to": "now"},
            "links": [
                {"type": "dashboards", "title": "sdtrace", "tags": ["sdtrace"], "asDropdown": false, "icon": "dashboard",
                 "includeVars": true, "keepTime": true, "targetBlank": false, "tooltip": "The other dashboards of sdtrace"},
                {"type": "link", "title": "Runbook", "url": "${runbook}", "tags": [], "asDropdown": false, "icon": "doc",
                 "includeVars": false, "keepTime": false, "targetBlank": true, "tooltip": "What each alert means, and what to do"},
            ],
            "annotations": {"list": []},
            "templating": {"list": self.variables()},
            "panels": panels,
        })
    }

    fn variables(&self) -> Vec<Value> {
        let labels = |name: &str, label: &str, query: &str, many: bool| {
            let mut variable = json!({
                "type": "query", "name": name, "label": label, "datasource": datasource(),
                "query": {"query": query, "refId": format!("variable-{name}")},
                "refresh": 2, "sort": 1, "multi": many, "includeAll": many,
            });
            if many {
                // Also what has no such label: not everybody gives their clusters names.
                variable["allValue"] = json!(".*");
                variable["current"] = json!({"text": ["All"], "value": ["$__all"]});
            }
            variable
        };
        vec![
            json!({"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus",
                   "refresh": 1, "multi": false, "includeAll": false}),
            labels(
                "cluster",
                "Cluster",
                "label_values(sdtrace_build_info, cluster)",
                true,
            ),
            labels(
                "job",
                "Job",
                r#"label_values(sdtrace_build_info{cluster=~"$cluster"}, job)"#,
                true,
            ),
            labels(
                "instance",
                "Node",
                r#"label_values(sdtrace_build_info{cluster=~"$cluster", job=~"$job"}, instance)"#,
                !self.one_node,
            ),
            json!({"type": "constant", "name": "runbook", "label": "Runbook", "query": super::RUNBOOK, "hide": 2,
                   "skipUrlSync": true}),
        ]
    }
}

/// The chosen data source.
fn datasource() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}
