//! JSON Schemas drawn at random: every keyword in every place, most of them satisfiable.

use serde_json::{Map, Value, json};

/// Draws schemas.
pub(crate) struct Generator {
    state: u64,
    /// Definitions that `$ref` may name.
    num_definitions: u64,
}

impl Generator {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            state: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x1234_5678,
            num_definitions: 0,
        }
    }

    fn below(&mut self, n: u64) -> u64 {
        self.state = self
            .state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.state >> 33) % n
    }

    fn chance(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }

    /// A whole document.
    pub(crate) fn schema(&mut self) -> Value {
        self.num_definitions = self.below(3);
        let mut schema = match self.below(4) {
            0 => self.any(3),
            _ => self.object(3),
        };
        let definitions: Map<String, Value> = (0..self.num_definitions)
            .map(|i| (format!("d{i}"), self.definition(i)))
            .collect();
        if !definitions.is_empty()
            && let Value::Object(schema) = &mut schema
        {
            schema.insert("$defs".to_owned(), definitions.into());
        }
        schema
    }

    /// A definition, sometimes of a list of itself.
    fn definition(&mut self, i: u64) -> Value {
        match self.below(3) {
            0 => json!({ "type": "object", "properties": { "v": { "type": "integer" },
                "next": { "type": "array", "items": { "$ref": format!("#/$defs/d{i}") }, "maxItems": 2 } }, "required": ["v"] }),
            1 => self.scalar(),
            _ => self.object(1),
        }
    }

    fn any(&mut self, depth: u64) -> Value {
        if depth == 0 {
            return self.scalar();
        }
        match self.below(12) {
            0..=3 => self.scalar(),
            4..=6 => self.object(depth - 1),
            7 | 8 => self.array(depth - 1),
            9 => self.combined(depth - 1),
            10 if self.num_definitions > 0 => {
                let i = self.below(self.num_definitions);
                json!({ "$ref": format!("#/$defs/d{i}") })
            }
            _ => match self.below(4) {
                0 => json!({}),
                1 => json!({ "type": ["string", "null"], "maxLength": 8 }),
                2 => json!({ "type": ["integer", "boolean"] }),
                _ => self.scalar(),
            },
        }
    }

    fn scalar(&mut self) -> Value {
        match self.below(10) {
            0 => json!({ "type": "boolean" }),
            1 => json!({ "type": "null" }),
            2 => json!({ "enum": ["red", "green", 7, null, true, { "a": 1 }, "é\n\"q\""] }),
            3 => json!({ "const": json!(["x y", 5, -1.5, false, "\\"])[self.below(5) as usize] }),
            4 => self.number("integer"),
            5 => self.number("number"),
            6 => {
                let least = self.below(4);
                json!({ "type": "string", "minLength": least, "maxLength": least + self.below(12) })
            }
            7 => {
                let patterns = [
                    "^[a-z]{2,6}$",
                    "^\\d{3}-\\d{4}$",
                    "^(foo|ba[rz])+$",
                    "[0-9]+$",
                    "^x",
                    "^[^\\s]{1,9}$",
                ];
                json!({ "type": "string", "pattern": patterns[self.below(6) as usize] })
            }
            8 => {
                let formats = [
                    "date",
                    "time",
                    "date-time",
                    "uuid",
                    "ipv4",
                    "email",
                    "uri",
                    "hostname",
                    "duration",
                    "ipv6",
                    "int64",
                    "idn-email",
                ];
                json!({ "type": "string", "format": formats[self.below(12) as usize] })
            }
            _ => json!({ "type": "string" }),
        }
    }

    fn number(&mut self, name: &str) -> Value {
        let mut schema = json!({ "type": name });
        let from = self.below(200) as i64 - 100;
        if self.chance(2) {
            let key = ["minimum", "exclusiveMinimum"][self.below(2) as usize];
            schema[key] = from.into();
        }
        if self.chance(2) {
            let key = ["maximum", "exclusiveMaximum"][self.below(2) as usize];
            schema[key] = (from + 2 + self.below(1000) as i64).into();
        }
        if self.chance(6) {
            schema["multipleOf"] = json!([2, 5, 10][self.below(3) as usize]);
        }
        schema
    }

    fn object(&mut self, depth: u64) -> Value {
        let num = self.below(5);
        let names: Vec<String> = (0..num)
            .map(|i| format!("{}{i}", ["id", "name", "a b", "ü", "x-y"][i as usize]))
            .collect();
        let properties: Map<String, Value> = names
            .iter()
            .map(|name| (name.clone(), self.any(depth)))
            .collect();
        let required: Vec<&String> = names.iter().filter(|_| self.below(3) > 0).collect();
        let mut schema =
            json!({ "type": "object", "properties": properties, "required": required });
        match self.below(6) {
            0 => {}
            1 => schema["additionalProperties"] = json!({ "type": "integer" }),
            _ => schema["additionalProperties"] = json!(false),
        }
        match self.below(16) {
            0 => schema["patternProperties"] = json!({ "^p_": self.scalar() }),
            1 => {
                schema = json!({ "type": "object", "propertyNames": { "pattern": "^[a-z]{1,5}$" }, "additionalProperties": self.scalar(),
                    "minProperties": 1, "maxProperties": 3 });
            }
            2 => schema["minProperties"] = json!(1),
            3 => schema["propertyNames"] = json!({ "maxLength": 6 }),
            _ => {}
        }
        schema
    }

    fn array(&mut self, depth: u64) -> Value {
        let mut schema = json!({ "type": "array", "items": self.any(depth) });
        if self.chance(2) {
            let least = self.below(3);
            schema["minItems"] = least.into();
            schema["maxItems"] = (least + self.below(4)).into();
        }
        if self.chance(5) {
            schema["prefixItems"] = json!([self.scalar(), self.scalar()]);
        }
        if self.chance(12) {
            schema["uniqueItems"] = json!(true);
        }
        schema
    }

    fn combined(&mut self, depth: u64) -> Value {
        match self.below(5) {
            0 => json!({ "anyOf": [self.any(depth), self.any(depth), self.scalar()] }),
            1 => json!({ "oneOf": [
                { "type": "object", "properties": { "kind": { "const": "a" }, "v": self.any(depth) }, "required": ["kind", "v"] },
                { "type": "object", "properties": { "kind": { "const": "b" } }, "required": ["kind"] }] }),
            2 => json!({ "oneOf": [{ "type": "integer" }, { "type": "string", "maxLength": 5 }] }),
            3 => json!({ "allOf": [self.object(depth), { "properties": { "id0": true } }] }),
            _ => json!({ "type": "integer", "allOf": [{ "minimum": 3 }, { "maximum": 40 }] }),
        }
    }
}
