//! Protobuf as tonic has it, with small buffers.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Bytes of the buffers that a message is read from and written to, to begin with.
/// tonic's own have 8 KiB, of which most messages of this API fill a few hundred
/// bytes: all of it is overwritten when it is freed, and takes the place of code in
/// the caches.
const BUFFER: usize = 1_024;

/// Bytes of messages of a stream that are sent together: as tonic has it.
const TOGETHER: usize = 32 * 1_024;

fn settings() -> BufferSettings {
    BufferSettings::new(BUFFER, TOGETHER)
}

/// The codec of all generated code.
pub(super) struct LeanCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for LeanCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for LeanCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(settings())
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(settings())
    }
}
