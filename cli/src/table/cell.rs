//! One cell of a column as a JSON value: for templates, and for CSV and JSONL.

use arrow_array::cast::AsArray;
use arrow_array::temporal_conversions as time;
use arrow_array::types::{
    Date32Type, Date64Type, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type, Float16Type,
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, Time32MillisecondType,
    Time32SecondType, Time64MicrosecondType, Time64NanosecondType, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrowPrimitiveType};
use arrow_schema::{DataType, Field, TimeUnit};
use serde_json::{Map, Number, Value};

use super::types::is_json;

/// Whether values of a type can be written as JSON.
pub(crate) fn is_readable(kind: &DataType) -> bool {
    match kind {
        DataType::Null
        | DataType::Boolean
        | DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::Date32
        | DataType::Date64
        | DataType::Time32(_)
        | DataType::Time64(_)
        | DataType::Timestamp(..)
        | DataType::Decimal32(..)
        | DataType::Decimal64(..)
        | DataType::Decimal128(..)
        | DataType::Decimal256(..) => true,
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            is_readable(item.data_type())
        }
        DataType::Map(entries, _) => is_readable(entries.data_type()),
        DataType::Struct(fields) => fields.iter().all(|field| is_readable(field.data_type())),
        kind => kind.is_integer() || kind.is_floating(),
    }
}

/// The value of a row. Dates and times are texts as ISO 8601 has them, decimals are texts with all digits.
///
/// Only of types that are readable.
pub(crate) fn value(field: &Field, array: &dyn Array, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::Utf8 => {
            let text = array.as_string::<i32>().value(row);
            let json = is_json(field).then(|| serde_json::from_str(text).ok()).flatten();
            json.unwrap_or_else(|| text.into())
        }
        DataType::LargeUtf8 => array.as_string::<i64>().value(row).into(),
        DataType::Utf8View => array.as_string_view().value(row).into(),
        DataType::Int8 => of::<Int8Type>(array, row).into(),
        DataType::Int16 => of::<Int16Type>(array, row).into(),
        DataType::Int32 => of::<Int32Type>(array, row).into(),
        DataType::Int64 => of::<Int64Type>(array, row).into(),
        DataType::UInt8 => of::<UInt8Type>(array, row).into(),
        DataType::UInt16 => of::<UInt16Type>(array, row).into(),
        DataType::UInt32 => of::<UInt32Type>(array, row).into(),
        DataType::UInt64 => of::<UInt64Type>(array, row).into(),
        DataType::Float16 => number(&of::<Float16Type>(array, row).to_string()),
        DataType::Float32 => number(&of::<Float32Type>(array, row).to_string()),
        DataType::Float64 => number(&of::<Float64Type>(array, row).to_string()),
        DataType::Decimal32(..) => array.as_primitive::<Decimal32Type>().value_as_string(row).into(),
        DataType::Decimal64(..) => array.as_primitive::<Decimal64Type>().value_as_string(row).into(),
        DataType::Decimal128(..) => array.as_primitive::<Decimal128Type>().value_as_string(row).into(),
        DataType::Decimal256(..) => array.as_primitive::<Decimal256Type>().value_as_string(row).into(),
        DataType::List(item) => list(item, &array.as_list::<i32>().value(row)),
        DataType::LargeList(item) => list(item, &array.as_list::<i64>().value(row)),
        DataType::FixedSizeList(item, _) => list(item, &array.as_fixed_size_list().value(row)),
        DataType::Struct(fields) => {
            let columns = fields.iter().zip(array.as_struct().columns());
            Value::Object(
                columns.map(|(field, column)| (field.name().clone(), value(field, column, row))).collect(),
            )
        }
        DataType::Map(..) => {
            let entries = array.as_map().value(row);
            let cell = |column: usize, row| value(&entries.fields()[column], entries.column(column), row);
            let pairs = (0..entries.len()).map(|at| (text(&cell(0, at)), cell(1, at)));
            Value::Object(pairs.collect::<Map<String, Value>>())
        }
        kind => moment(kind, array, row).map_or(Value::Null, Value::String),
    }
}

/// A value as CSV and texts show it.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn of<T: ArrowPrimitiveType>(array: &dyn Array, row: usize) -> T::Native {
    array.as_primitive::<T>().value(row)
}

fn list(item: &Field, items: &dyn Array) -> Value {
    Value::Array((0..items.len()).map(|row| value(item, items, row)).collect())
}

/// The shortest digits of a float of any width; JSON has no NaN, so it becomes a text.
fn number(digits: &str) -> Value {
    let number = digits.parse().ok().and_then(Number::from_f64);
    number.map_or_else(|| Value::String(digits.to_owned()), Value::Number)
}

fn moment(kind: &DataType, array: &dyn Array, row: usize) -> Option<String> {
    Some(match kind {
        DataType::Date32 => {
            let at = of::<Date32Type>(array, row).into();
            format!("{:?}", time::as_date::<Date32Type>(at)?)
        }
        DataType::Date64 => {
            let at = of::<Date64Type>(array, row);
            format!("{:?}", time::as_date::<Date64Type>(at)?)
        }
        DataType::Time32(TimeUnit::Second) => {
            let at = of::<Time32SecondType>(array, row).into();
            format!("{:?}", time::as_time::<Time32SecondType>(at)?)
        }
        DataType::Time32(_) => {
            let at = of::<Time32MillisecondType>(array, row).into();
            format!("{:?}", time::as_time::<Time32MillisecondType>(at)?)
        }
        DataType::Time64(TimeUnit::Microsecond) => {
            let at = of::<Time64MicrosecondType>(array, row);
            format!("{:?}", time::as_time::<Time64MicrosecondType>(at)?)
        }
        DataType::Time64(_) => {
            let at = of::<Time64NanosecondType>(array, row);
            format!("{:?}", time::as_time::<Time64NanosecondType>(at)?)
        }
        DataType::Timestamp(unit, zone) => {
            let at = match unit {
                TimeUnit::Second => time::timestamp_s_to_datetime(of::<TimestampSecondType>(array, row)),
                TimeUnit::Millisecond => {
                    time::timestamp_ms_to_datetime(of::<TimestampMillisecondType>(array, row))
                }
                TimeUnit::Microsecond => {
                    time::timestamp_us_to_datetime(of::<TimestampMicrosecondType>(array, row))
                }
                TimeUnit::Nanosecond => {
                    time::timestamp_ns_to_datetime(of::<TimestampNanosecondType>(array, row))
                }
            }?;
            // A time with a zone is stored in UTC.
            format!("{at:?}{}", if zone.is_some() { "Z" } else { "" })
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use arrow_array::{
        Date32Array, Decimal128Array, Float32Array, Float64Array, Int64Array, TimestampMillisecondArray,
        UInt64Array,
    };
    use serde_json::json;

    use super::*;

    fn value(array: &dyn Array, row: usize) -> Value {
        super::value(&Field::new("x", array.data_type().clone(), true), array, row)
    }

    #[test]
    fn cells_keep_their_digits_and_their_moments() {
        assert_eq!(value(&Int64Array::from(vec![i64::MIN]), 0), json!(i64::MIN));
        assert_eq!(value(&UInt64Array::from(vec![u64::MAX]), 0), json!(u64::MAX));
        assert_eq!(value(&Float32Array::from(vec![0.1f32]), 0), json!(0.1));
        assert_eq!(value(&Float64Array::from(vec![f64::NAN]), 0), json!("NaN"));
        assert_eq!(value(&Date32Array::from(vec![19_723]), 0), json!("2024-01-01"));
        let at = TimestampMillisecondArray::from(vec![1_704_067_200_123]);
        assert_eq!(value(&at, 0), json!("2024-01-01T00:00:00.123"));
        assert_eq!(value(&at.with_timezone("Europe/Berlin"), 0), json!("2024-01-01T00:00:00.123Z"));
        let price = Decimal128Array::from(vec![12_345]).with_precision_and_scale(10, 2).unwrap();
        assert_eq!(value(&price, 0), json!("123.45"));
        assert!(!is_readable(&DataType::Binary) && !is_readable(&DataType::Duration(TimeUnit::Second)));
    }
}
