//! `oneOf` whose options exclude each other says what `anyOf` says.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// References that are followed from one option, at most.
const MAX_REFERENCES: usize = 32;

/// Turns `oneOf` into `anyOf` where no value fits two of its options. llguidance refuses other ones.
pub(super) fn to_any_of(schema: &mut Map<String, Value>, root: &Value) {
    let Some(Value::Array(options)) = schema.get("oneOf") else {
        return;
    };
    if schema.contains_key("anyOf") {
        return;
    }
    let mut before: Vec<Shape> = Vec::with_capacity(options.len());
    for option in options {
        let shape = Shape::of(option, root);
        if !before.iter().all(|other| other.excludes(&shape)) {
            return;
        }
        before.push(shape);
    }
    // The order of the keywords counts.
    let renamed = std::mem::take(schema)
        .into_iter()
        .map(|(key, value)| match key.as_str() {
            "oneOf" => ("anyOf".to_owned(), value),
            _ => (key, value),
        });
    *schema = renamed.collect();
}

/// What is certain of the values that a schema accepts.
struct Shape {
    /// Their types; `integer` is `number` here.
    types: BTreeSet<String>,
    /// All of them, as JSON, if they are few.
    values: Option<BTreeSet<String>>,
    /// Values of properties that objects must have, as JSON.
    properties: Vec<(String, BTreeSet<String>)>,
    /// Names of properties that objects must have.
    required: BTreeSet<String>,
    /// Names of all properties that objects may have, if the schema names them.
    allowed: Option<BTreeSet<String>>,
}

impl Shape {
    fn of(schema: &Value, root: &Value) -> Self {
        let mut shape = Self {
            types: ["null", "boolean", "number", "string", "array", "object"]
                .map(str::to_owned)
                .into(),
            values: None,
            properties: Vec::new(),
            required: BTreeSet::new(),
            allowed: None,
        };
        let Some(object) = followed(schema, root) else {
            return shape;
        };
        shape.values = values(object);
        let name = |name: &str| if name == "integer" { "number" } else { name }.to_owned();
        match (object.get("type"), &shape.values) {
            (Some(Value::String(one)), _) => shape.types = [name(one)].into(),
            (Some(Value::Array(several)), _) => {
                shape.types = several.iter().filter_map(Value::as_str).map(name).collect();
            }
            _ => {}
        }
        let required = object.get("required").and_then(Value::as_array);
        let properties = object.get("properties").and_then(Value::as_object);
        for key in required.into_iter().flatten().filter_map(Value::as_str) {
            let property = properties.and_then(|properties| properties.get(key));
            let property = property.and_then(|property| followed(property, root));
            if let Some(values) = property.and_then(values) {
                shape.properties.push((key.to_owned(), values));
            }
            shape.required.insert(key.to_owned());
        }
        if object.get("additionalProperties") == Some(&Value::Bool(false))
            && !object.contains_key("patternProperties")
        {
            let names = properties.into_iter().flatten().map(|(name, _)| name);
            shape.allowed = Some(names.cloned().collect());
        }
        shape
    }

    /// Whether no value fits both.
    fn excludes(&self, other: &Self) -> bool {
        let disjoint = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.is_disjoint(b);
        if disjoint(&self.types, &other.types) {
            return true;
        }
        if let (Some(a), Some(b)) = (&self.values, &other.values)
            && disjoint(a, b)
        {
            return true;
        }
        // Only of objects it is certain that they have the property.
        let are_objects = |shape: &Self| shape.types.iter().all(|name| name == "object");
        if !are_objects(self) && !are_objects(other) {
            return false;
        }
        self.forbids(&other.required)
            || other.forbids(&self.required)
            || self.properties.iter().any(|(key, a)| {
                let mut same = other.properties.iter().filter(|(other, _)| other == key);
                same.any(|(_, b)| disjoint(a, b))
            })
    }

    /// Whether an object may not have all of these properties.
    fn forbids(&self, names: &BTreeSet<String>) -> bool {
        let allowed = self.allowed.as_ref();
        allowed.is_some_and(|allowed| !names.is_subset(allowed))
    }
}

/// All values that a schema may accept, as JSON, if it names them.
fn values(schema: &Map<String, Value>) -> Option<BTreeSet<String>> {
    if let Some(value) = schema.get("const") {
        return Some([written(value)?].into());
    }
    let values = schema.get("enum")?.as_array()?;
    values.iter().map(written).collect()
}

/// A value as text: equal values have equal texts. `None` for numbers, lists and objects, which have several.
fn written(value: &Value) -> Option<String> {
    matches!(value, Value::Null | Value::Bool(_) | Value::String(_)).then(|| value.to_string())
}

/// The object that a schema is, or that its references lead to.
fn followed<'a>(schema: &'a Value, root: &'a Value) -> Option<&'a Map<String, Value>> {
    let mut object = schema.as_object()?;
    for _ in 0..MAX_REFERENCES {
        let Some(reference) = object.get("$ref") else {
            return Some(object);
        };
        object = root
            .pointer(reference.as_str()?.strip_prefix('#')?)?
            .as_object()?;
    }
    None
}
