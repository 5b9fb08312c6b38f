//! Wire structures declared by offset.
//!
//! KD messages are C structures of the target's compiler. Here every field names its own offset, so that a
//! declaration can be compared with a layout table line by line and nothing depends on the host's alignment.

use bytes::Bytes;

/// A message that is shorter than its fixed part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {got} bytes, at least {needed} expected")]
pub struct DecodeError {
    /// Which message, as its module is called.
    pub what: &'static str,
    /// Bytes that its fixed part has.
    pub needed: usize,
    /// Bytes that were there.
    pub got: usize,
}

/// A field's value as a dissector shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A number and its width in bytes.
    Number(u64, u8),
    /// What is text by its meaning.
    Text(String),
    /// What has no meaning here, or is text of the target's.
    Bytes(Bytes),
    /// Numbers of eight bytes.
    List(Vec<u64>),
}

/// Name and value, in wire order. Names are Microsoft's.
pub type Fields = Vec<(String, Value)>;

/// A structure with a fixed part, and possibly data after it.
pub trait Layout: Sized {
    /// Bytes of the fixed part, headers included.
    const SIZE: usize;
    /// Reads the fixed part, and what follows it.
    fn decode(bytes: &Bytes) -> Result<Self, DecodeError>;
    /// The fixed part, then the data. Bytes that no field names are zero.
    fn encode(&self) -> Vec<u8>;
    /// Adds names and values, in wire order.
    fn fields(&self, out: &mut Fields);
}

/// What can stand in a fixed part. The caller has checked that the bytes are there.
pub(crate) trait Field: Sized {
    fn get(bytes: &[u8], offset: usize) -> Self;
    fn put(&self, bytes: &mut [u8], offset: usize);
    fn value(&self) -> Value;
}

macro_rules! number {
    ($($ty:ty),*) => {$(
        impl Field for $ty {
            fn get(bytes: &[u8], offset: usize) -> Self {
                let mut raw = [0; size_of::<$ty>()];
                raw.copy_from_slice(&bytes[offset..offset + size_of::<$ty>()]);
                <$ty>::from_le_bytes(raw)
            }

            fn put(&self, bytes: &mut [u8], offset: usize) {
                bytes[offset..offset + size_of::<$ty>()].copy_from_slice(&self.to_le_bytes());
            }

            fn value(&self) -> Value {
                Value::Number(u64::from(*self), size_of::<$ty>() as u8)
            }
        }
    )*};
}

number!(u8, u16, u32, u64);

impl<const N: usize> Field for [u8; N] {
    fn get(bytes: &[u8], offset: usize) -> Self {
        let mut raw = [0; N];
        raw.copy_from_slice(&bytes[offset..offset + N]);
        raw
    }

    fn put(&self, bytes: &mut [u8], offset: usize) {
        bytes[offset..offset + N].copy_from_slice(self);
    }

    fn value(&self) -> Value {
        Value::Bytes(Bytes::copy_from_slice(self))
    }
}

impl<const N: usize> Field for [u64; N] {
    fn get(bytes: &[u8], offset: usize) -> Self {
        std::array::from_fn(|i| u64::get(bytes, offset + 8 * i))
    }

    fn put(&self, bytes: &mut [u8], offset: usize) {
        for (i, number) in self.iter().enumerate() {
            number.put(bytes, offset + 8 * i);
        }
    }

    fn value(&self) -> Value {
        Value::List(self.to_vec())
    }
}

/// `target_base_address` is `TargetBaseAddress` on the wire's side of the world.
pub(crate) fn wire_name(field: &str) -> String {
    field
        .split('_')
        .flat_map(|word| word[..1].to_uppercase().chars().chain(word[1..].chars()).collect::<Vec<_>>())
        .collect()
}

/// `struct Name [size] { offset field: type, ... }`, and `+ data` when bytes follow the fixed part.
macro_rules! layout {
    (
        $(#[$meta:meta])*
        struct $name:ident [$size:literal] {
            $( $(#[$field_meta:meta])* $offset:literal $field:ident : $ty:ty ),* $(,)?
        }
        $( + $(#[$data_meta:meta])* $data:ident )?
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq, Default)]
        pub struct $name {
            $(
                $(#[$field_meta])*
                #[doc = concat!("\n\nAt byte ", stringify!($offset), " of the message.")]
                pub $field: $ty,
            )*
            $( $(#[$data_meta])* pub $data: bytes::Bytes, )?
        }

        impl $crate::message::Layout for $name {
            const SIZE: usize = $size;

            fn decode(bytes: &bytes::Bytes) -> Result<Self, $crate::message::DecodeError> {
                if bytes.len() < $size {
                    let what = module_path!();
                    return Err($crate::message::DecodeError { what, needed: $size, got: bytes.len() });
                }
                Ok(Self {
                    $( $field: $crate::message::layout::Field::get(bytes, $offset), )*
                    $( $data: bytes.slice($size..), )?
                })
            }

            #[allow(unused_mut)]
            fn encode(&self) -> Vec<u8> {
                let mut bytes = vec![0; $size];
                $( $crate::message::layout::Field::put(&self.$field, &mut bytes, $offset); )*
                $( bytes.extend_from_slice(&self.$data); )?
                bytes
            }

            #[allow(unused_variables)]
            fn fields(&self, out: &mut $crate::message::Fields) {
                $( out.push((
                    $crate::message::layout::wire_name(stringify!($field)),
                    $crate::message::layout::Field::value(&self.$field),
                )); )*
                $( if !self.$data.is_empty() {
                    out.push((stringify!($data).to_owned(), $crate::message::Value::Bytes(self.$data.clone())));
                } )?
            }
        }
    };
}
pub(crate) use layout;
