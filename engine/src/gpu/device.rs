//! What the backend needs of a GPU: memory, kernels of one PTX module, and an order in which things happen.

/// An address in a device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pointer(pub(crate) u64);

impl Pointer {
    /// What a kernel takes for an array that is not there.
    pub(crate) const NULL: Pointer = Pointer(0);

    /// Some bytes further.
    pub(crate) fn plus(self, bytes: usize) -> Pointer {
        Pointer(self.0 + bytes as u64)
    }
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Arg {
    Pointer(Pointer),
    Word(u32),
    Float(f32),
}

impl From<Pointer> for Arg {
    fn from(pointer: Pointer) -> Arg {
        Arg::Pointer(pointer)
    }
}

impl From<usize> for Arg {
    fn from(count: usize) -> Arg {
        Arg::Word(u32::try_from(count).expect("because counts of a step are far below 2³²"))
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Arg {
        Arg::Float(value)
    }
}

/// How many blocks a kernel runs, and of how many threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) blocks: [u32; 3],
    pub(crate) threads: u32,
}

/// What went wrong on a device, with what to do where something can be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Fault(pub(crate) String);

/// A device. Calls take effect in their order; a download waits for what came before it.
pub(crate) trait Device: std::fmt::Debug + Send {
    /// For messages and metrics.
    fn name(&self) -> String;
    /// Memory that can be allocated.
    fn free_bytes(&self) -> Result<u64, Fault>;
    /// `bytes` zeros, aligned to 256 bytes; they live as long as the device.
    fn allocate(&mut self, bytes: usize) -> Result<Pointer, Fault>;
    fn upload(&mut self, to: Pointer, bytes: &[u8]) -> Result<(), Fault>;
    fn download(&mut self, from: Pointer, to: &mut [u8]) -> Result<(), Fault>;
    /// Within its memory, between parts that do not overlap.
    fn copy(&mut self, from: Pointer, to: Pointer, bytes: usize) -> Result<(), Fault>;
    fn launch(&mut self, kernel: &'static str, grid: Grid, args: &[Arg]) -> Result<(), Fault>;
}
