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
