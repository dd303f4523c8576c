//! Values of flags, for programs that use clap.

use std::ffi::OsStr;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, Command, ValueEnum};

/// A parser for a flag that takes some of `T`'s values. `shown` are their spellings, each with what it means for the flag;
/// other spellings of the same values are taken as well.
///
/// ```
/// use clap::Parser;
/// use model_qwen::Dtype;
///
/// #[derive(Parser)]
/// struct Args {
///     #[arg(long, value_parser = model_qwen::flags::some_of::<Dtype>(&[("f32", "exact"), ("bf16", "small")]))]
///     dtype: Dtype,
/// }
///
/// let args = Args::try_parse_from(["program", "--dtype", "bfloat16"])?;
/// assert_eq!(args.dtype, Dtype::Bf16);
/// assert!(Args::try_parse_from(["program", "--dtype", "f16"]).is_err());
/// # Ok::<(), clap::Error>(())
/// ```
pub fn some_of<T>(shown: &[(&'static str, &'static str)]) -> impl TypedValueParser<Value = T>
where
    T: ValueEnum + Clone + PartialEq + Send + Sync + 'static,
{
    let values = shown
        .iter()
        .map(|&(name, help)| PossibleValue::new(name).help(help));
    SomeOf {
        shown: PossibleValuesParser::new(values),
        taken: shown
            .iter()
            .filter_map(|(name, _)| T::from_str(name, false).ok())
            .collect(),
    }
}

/// A whole number of a type.
///
/// ```
/// # use model_qwen::flags::whole;
/// assert_eq!(whole::<usize>("5"), Ok(5));
/// assert_eq!(whole::<i64>("-1"), Ok(-1));
/// let error = whole::<u64>("-5").unwrap_err();
/// assert_eq!(error, "expected a whole number, 0 or more, found `-5`");
/// let error = whole::<u16>("70000").unwrap_err();
/// assert_eq!(error, "expected a whole number from 0 to 65535, found `70000`");
/// ```
///
/// # Errors
/// What was expected, and what was found.
pub fn whole<T: TryFrom<i128>>(text: &str) -> Result<T, String> {
    let number = text.trim().parse::<i128>();
    let is_signed = T::try_from(-1).is_ok();
    let bits = u32::try_from(8 * size_of::<T>()).unwrap_or(u32::MAX);
    let expected = || match (is_signed, bits) {
        (true, _) => "a whole number".to_owned(),
        (false, 64) if !matches!(number, Ok(1..)) => "a whole number, 0 or more".to_owned(),
        (false, 64..) => format!("a whole number from 0 to 2^{bits} - 1"),
        (false, _) => format!("a whole number from 0 to {}", (1_u64 << bits) - 1),
    };
    let parsed = number
        .clone()
        .ok()
        .and_then(|number| T::try_from(number).ok());
    parsed.ok_or_else(|| format!("expected {}, found `{text}`", expected()))
}

/// A fraction above 0 and at most 1.
///
/// # Errors
/// What was expected.
pub fn fraction(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => Err("expected a fraction above 0 and at most 1, such as 0.9".to_owned()),
    }
}

/// A number of bytes: `8GiB` and `8G` are binary, `8GB` and `8g` decimal, a bare number is bytes.
///
/// # Errors
/// What was expected.
pub fn bytes(text: &str) -> Result<u64, String> {
    let expected = || "expected a size such as 8GiB, 6000MB or a number of bytes".to_owned();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale: u64 = match unit.trim() {
        "" | "B" => 1,
        "KiB" | "K" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        "TiB" | "T" => 1 << 40,
        "kB" | "KB" | "k" => 1_000,
        "MB" | "m" => 1_000_000,
        "GB" | "g" => 1_000_000_000,
        "TB" | "t" => 1_000_000_000_000,
        _ => return Err(expected()),
    };
    scaled(number, scale).ok_or_else(expected)
}

/// `number * scale` for a whole or decimal number, if the product is a whole number that fits.
pub fn scaled(number: &str, scale: u64) -> Option<u64> {
    if number.bytes().all(|b| b.is_ascii_digit()) {
        return number.parse::<u64>().ok()?.checked_mul(scale);
    }
    let value = number.parse::<f64>().ok()? * scale as f64;
    (scale > 1 && value.is_finite() && value >= 0.0 && value < 2f64.powi(63))
        .then_some(value as u64)
}

/// What [`some_of`] makes.
#[derive(Clone)]
struct SomeOf<T> {
    shown: PossibleValuesParser,
    taken: Vec<T>,
}

impl<T> TypedValueParser for SomeOf<T>
where
    T: ValueEnum + Clone + PartialEq + Send + Sync + 'static,
{
    type Value = T;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<T, clap::Error> {
        let known = value
            .to_str()
            .and_then(|text| T::from_str(text, false).ok());
        match known.filter(|value| self.taken.contains(value)) {
            Some(value) => Ok(value),
            None => {
                self.shown.parse_ref(command, arg, value)?;
                // Only a name in `shown` that is none of `T` comes here.
                Err(clap::Error::new(ErrorKind::InvalidValue).with_cmd(command))
            }
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        self.shown.possible_values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_or_decimal() {
        assert_eq!(bytes("8GiB"), Ok(8 << 30));
        assert_eq!(bytes("8G"), Ok(8 << 30));
        assert_eq!(bytes("8GB"), Ok(8_000_000_000));
        assert_eq!(bytes("0.5GiB"), Ok(1 << 29));
        assert_eq!(bytes("123"), Ok(123));
        for bad in ["", "GiB", "-1", "8XB", "1.5", "99999999999TiB", "8 é"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
