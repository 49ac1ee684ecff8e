//! The description of the API for machines, made from what serves it: each route is added together with its description,
//! and the schemas come from the types that are read and written.

use axum::handler::Handler;
use axum::routing::{MethodRouter, Router, get};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::model::ErrorAnswer;

/// Version of the specification whose schemas are those of JSON Schema 2020-12, which schemars makes.
const VERSION: &str = "3.1.0";
/// Where the API begins.
pub const BASE: &str = "/api/v1";

/// What one route answers.
pub struct Operation {
    /// Path behind [`BASE`].
    pub path: &'static str,
    /// Name for programs that are made from the description.
    pub id: &'static str,
    /// What it answers, in a few words.
    pub summary: &'static str,
    /// Parameters in the path.
    pub named: Option<fn(&mut SchemaGenerator) -> Schema>,
    /// Parameters behind the question mark.
    pub asked: fn(&mut SchemaGenerator) -> Schema,
    /// The answer.
    pub answer: fn(&mut SchemaGenerator) -> Schema,
    /// Whether the owner of the ledger is asked, who may not be there.
    pub asks_owner: bool,
}

/// The schema of a type.
pub fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// The schema of a type that holds parameters, with its properties.
pub fn parameters_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    T::json_schema(generator)
}

/// Routes and their descriptions.
pub struct Routes<S> {
    router: Router<S>,
    operations: Vec<Operation>,
}

impl<S: Clone + Send + Sync + 'static> Default for Routes<S> {
    fn default() -> Self {
        Self {
            router: Router::new(),
            operations: Vec::new(),
        }
    }
}

impl<S: Clone + Send + Sync + 'static> Routes<S> {
    /// Adds a route with its description.
    #[must_use]
    pub fn get<H: Handler<T, S>, T: 'static>(mut self, operation: Operation, handler: H) -> Self {
        let method: MethodRouter<S> = get(handler);
        self.router = self.router.route(operation.path, method);
        self.operations.push(operation);
        self
    }

    /// The routes, and the description of all of them.
    pub fn finish(self) -> (Router<S>, Value) {
        let description = description(&self.operations);
        (self.router, description)
    }
}

fn description(operations: &[Operation]) -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into())
        // What is answered has all its fields, also those that may be null.
        .for_serialize()
        .into_generator();
    let error = of::<ErrorAnswer>(&mut generator);
    let paths: Map<String, Value> = operations
        .iter()
        .map(|operation| {
            let path = format!("{BASE}{}", operation.path);
            (
                path,
                json!({ "get": described(operation, &error, &mut generator) }),
            )
        })
        .collect();
    let schemas = generator.take_definitions(true);
    json!({
        "openapi": VERSION,
        "info": {
            "title": "sdtrace",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "What a running sdtrace knows about soft-dirty tracking.",
            "description": "Read only. Lists come in pages: while `next_cursor` is not null, ask again with it as `cursor`. \
                            Names and meanings stay as they are within /api/v1; new fields may come.",
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

fn described(operation: &Operation, error: &Schema, generator: &mut SchemaGenerator) -> Value {
    let mut parameters = Vec::new();
    if let Some(named) = operation.named {
        parameters.extend(parameters_in("path", &named(generator)));
    }
    parameters.extend(parameters_in("query", &(operation.asked)(generator)));
    let content = |schema: &Schema| json!({ "application/json": { "schema": schema } });
    let refused = |why: &str| json!({ "description": why, "content": content(error) });
    let mut responses = Map::new();
    responses.insert(
        "200".to_owned(),
        json!({ "description": operation.summary, "content": content(&(operation.answer)(generator)) }),
    );
    responses.insert(
        "400".to_owned(),
        refused("A parameter cannot be used; the message says what to give."),
    );
    if operation.named.is_some() {
        responses.insert("404".to_owned(), refused("There is no such process or epoch."));
    }
    responses.insert("405".to_owned(), refused("The method is not GET."));
    if operation.asks_owner {
        responses.insert(
            "503".to_owned(),
            refused("sdtrace is starting or ending, or does not answer in time."),
        );
    }
    json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": parameters,
        "responses": responses,
    })
}

/// Each property of the schema as a parameter.
fn parameters_in(place: &str, schema: &Schema) -> Vec<Value> {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return Vec::new();
    };
    properties
        .iter()
        .map(|(name, schema)| {
            let mut schema = schema.clone();
            let mut description = None;
            if let Some(schema) = schema.as_object_mut() {
                description = schema.remove("description");
                // Left out is not the same as null.
                schema.remove("default");
            }
            json!({
                "name": name,
                "in": place,
                "required": place == "path",
                "description": description.unwrap_or_default(),
                "schema": schema,
            })
        })
        .collect()
}
