//! `--otlp-traces-endpoint`, and the variables of OpenTelemetry that go with it.

use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri};

use super::ConfigError;

const FLAG: &str = "--otlp-traces-endpoint";
/// Where a collector takes traces over HTTP.
const PATH: &str = "/v1/traces";

/// Where spans of requests are sent.
#[derive(Clone, Debug, PartialEq)]
pub struct TracesConfig {
    /// The collector's `http://` address, with its path.
    pub endpoint: Uri,
    /// What each message to it has.
    pub headers: HeaderMap,
    /// What the spans are of, `service.name` first.
    pub resource: Vec<(String, String)>,
    /// Which requests have a span.
    pub sampler: Sampler,
}

/// Which requests have a span.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// Whether a request that is part of a trace has one if the trace is sampled.
    pub follows_parent: bool,
    /// Share of the other requests, 0 to 1.
    pub ratio: f64,
}

impl TracesConfig {
    /// Reads the flag, and variables with `variable`.
    ///
    /// # Errors
    /// [`ConfigError::Flag`].
    pub(super) fn read(
        endpoint: &str,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let either = |names: [&'static str; 2]| {
            let mut names = names.into_iter();
            names.find_map(|name| set(name).map(|value| (name, value)))
        };
        if let Some((name, protocol)) = either([
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
            "OTEL_EXPORTER_OTLP_PROTOCOL",
        ]) && !matches!(protocol.as_str(), "http/json" | "http/protobuf")
        {
            return wrong(
                name,
                format!("expected http/json, found {protocol}: traces are sent over HTTP only"),
            );
        }
        let headers = either([
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
            "OTEL_EXPORTER_OTLP_HEADERS",
        ]);
        Ok(Self {
            endpoint: address(endpoint)?,
            headers: match headers {
                None => HeaderMap::new(),
                Some((name, value)) => header_map(name, &value)?,
            },
            resource: resource(set("OTEL_SERVICE_NAME"), set("OTEL_RESOURCE_ATTRIBUTES"))?,
            sampler: sampler(
                set("OTEL_TRACES_SAMPLER").as_deref(),
                set("OTEL_TRACES_SAMPLER_ARG").as_deref(),
            )?,
        })
    }
}

fn address(endpoint: &str) -> Result<Uri, ConfigError> {
    let expected = |why: &str| {
        let message = format!("expected http://HOST:4318{PATH}, found {endpoint}{why}");
        wrong(FLAG, message)
    };
    let Ok(uri) = endpoint.parse::<Uri>() else {
        return expected("");
    };
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => {
            return expected(": this server sends without TLS; name a collector that is near");
        }
        Some("grpc" | "grpcs") | None => {
            return expected(": traces are sent over HTTP, not gRPC (port 4317)");
        }
        Some(_) => return expected(""),
    }
    if uri
        .authority()
        .is_none_or(|authority| authority.as_str().contains('@') || !has_port_or_none(authority))
    {
        return expected("");
    }
    if uri.path() != "/" {
        return Ok(uri);
    }
    let full = format!("{}{PATH}", endpoint.trim_end_matches('/'));
    full.parse().or_else(|_| expected(""))
}

/// Whether what looks like a port is one.
fn has_port_or_none(authority: &Authority) -> bool {
    let after_host = authority.as_str().rsplit_once(']');
    let rest = after_host.map_or(authority.as_str(), |(_, rest)| rest);
    !rest.contains(':') || authority.port_u16().is_some()
}

/// `name=value,name=value`, with percent signs.
fn pairs(name: &'static str, text: &str) -> Result<Vec<(String, String)>, ConfigError> {
    let pairs = text.split(',').filter(|pair| !pair.trim().is_empty());
    let read = |pair: &str| {
        let (key, value) = pair.split_once('=')?;
        let value = percent_decoded(value.trim())?;
        (!key.trim().is_empty()).then(|| (key.trim().to_owned(), value))
    };
    pairs
        .map(|pair| {
            let message = || format!("expected name=value,name=value, found {pair}");
            read(pair).map_or_else(|| wrong(name, message()), Ok)
        })
        .collect()
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

fn header_map(name: &'static str, text: &str) -> Result<HeaderMap, ConfigError> {
    let mut headers = HeaderMap::new();
    for (key, value) in pairs(name, text)? {
        let parsed = (HeaderName::try_from(&key), HeaderValue::try_from(value));
        let (Ok(key), Ok(value)) = parsed else {
            return wrong(name, format!("the header {key} cannot be sent"));
        };
        headers.insert(key, value);
    }
    Ok(headers)
}

fn resource(
    service: Option<String>,
    attributes: Option<String>,
) -> Result<Vec<(String, String)>, ConfigError> {
    const SERVICE: &str = "service.name";
    let attributes = attributes.unwrap_or_default();
    let mut attributes = pairs("OTEL_RESOURCE_ATTRIBUTES", &attributes)?;
    let named = attributes.iter().position(|(key, _)| key == SERVICE);
    let named = named.map(|place| attributes.remove(place).1);
    let service = service.or(named).unwrap_or_else(|| "qwen-burn".to_owned());
    attributes.insert(0, (SERVICE.to_owned(), service));
    Ok(attributes)
}

fn sampler(name: Option<&str>, argument: Option<&str>) -> Result<Sampler, ConfigError> {
    let name = name.unwrap_or("parentbased_always_on");
    let ratio = || match argument.unwrap_or("1").parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => wrong(
            "OTEL_TRACES_SAMPLER_ARG",
            format!(
                "expected a number from 0 to 1, found {}",
                argument.unwrap_or_default()
            ),
        ),
    };
    let (follows_parent, own) = match name.strip_prefix("parentbased_") {
        Some(own) => (true, own),
        None => (false, name),
    };
    let ratio = match own {
        "always_on" => 1.0,
        "always_off" => 0.0,
        "traceidratio" => ratio()?,
        _ => {
            return wrong(
                "OTEL_TRACES_SAMPLER",
                format!(
                    "expected always_on, always_off or traceidratio, also with parentbased_ before it, found {name}"
                ),
            );
        }
    };
    Ok(Sampler {
        follows_parent,
        ratio,
    })
}

fn wrong<T>(flag: &'static str, message: String) -> Result<T, ConfigError> {
    Err(ConfigError::Flag { flag, message })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(endpoint: &str, variables: &[(&str, &str)]) -> Result<TracesConfig, String> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        TracesConfig::read(endpoint, variable).map_err(|error| error.to_string())
    }

    #[test]
    fn variables_are_opentelemetrys() {
        let plain = read("http://localhost:4318", &[]).unwrap();
        assert_eq!(plain.endpoint, "http://localhost:4318/v1/traces");
        let service = ("service.name".to_owned(), "qwen-burn".to_owned());
        assert_eq!(plain.resource, [service]);
        assert_eq!(
            plain.sampler,
            Sampler {
                follows_parent: true,
                ratio: 1.0
            }
        );
        let config = read(
            "http://tempo/otlp/v1/traces?a=b",
            &[
                ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
                ("OTEL_EXPORTER_OTLP_HEADERS", "a=b%20c, x-scope=d=e"),
                ("OTEL_RESOURCE_ATTRIBUTES", "service.name=a,zone=eu"),
                ("OTEL_SERVICE_NAME", "chat"),
                ("OTEL_TRACES_SAMPLER", "traceidratio"),
                ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ],
        )
        .unwrap();
        assert_eq!(config.endpoint, "http://tempo/otlp/v1/traces?a=b");
        assert_eq!(
            (&config.headers["a"], &config.headers["x-scope"]),
            (&"b c".parse().unwrap(), &"d=e".parse().unwrap())
        );
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            config.resource,
            [pair("service.name", "chat"), pair("zone", "eu")]
        );
        assert_eq!(
            config.sampler,
            Sampler {
                follows_parent: false,
                ratio: 0.25
            }
        );
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        for (endpoint, variables, part) in [
            ("grpc://jaeger:4317", &[][..], "over HTTP, not gRPC"),
            ("jaeger:4317", &[], "--otlp-traces-endpoint"),
            ("https://tempo", &[], "without TLS"),
            ("ftp://a", &[], "expected http://"),
            ("http://", &[], "expected http://"),
            ("http://a:b@c", &[], "expected http://"),
            (
                "http://a",
                &[("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc")],
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: expected http/json, found grpc",
            ),
            (
                "http://a",
                &[("OTEL_EXPORTER_OTLP_HEADERS", "a")],
                "OTEL_EXPORTER_OTLP_HEADERS: expected name=value",
            ),
            (
                "http://a",
                &[("OTEL_EXPORTER_OTLP_HEADERS", "a=%zz")],
                "expected name=value",
            ),
            (
                "http://a",
                &[("OTEL_EXPORTER_OTLP_HEADERS", "a b=c")],
                "the header a b",
            ),
            (
                "http://a",
                &[("OTEL_TRACES_SAMPLER", "jaeger_remote")],
                "OTEL_TRACES_SAMPLER: expected always_on",
            ),
            (
                "http://a",
                &[
                    ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
                    ("OTEL_TRACES_SAMPLER_ARG", "2"),
                ],
                "OTEL_TRACES_SAMPLER_ARG: expected a number from 0 to 1, found 2",
            ),
        ] {
            let error = read(endpoint, variables).unwrap_err();
            assert!(error.contains(part), "{endpoint} {variables:?}: {error}");
        }
    }
}
