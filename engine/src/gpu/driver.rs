//! A card by NVIDIA's driver, which is opened when it is asked for: nothing of CUDA is linked or installed.
//!
//! About twenty functions of `libcuda.so.1`, in one table, so that tests put others in their place. What the driver says is
//! passed on with what to do about it. No card has run this yet: what is known of it is the driver's documentation.
#![allow(unsafe_code)] // A library's functions are called by their address; each block says what makes that right.

use super::device::{Arg, Device, Fault, Grid, Pointer};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};

/// What the matrix products need: `mma.sync` on 8-bit numbers, as Ampere has it.
const LEAST_CAPABILITY: (c_int, c_int) = (8, 0);
/// The first version of CUDA whose drivers compile PTX 7.0, in which the kernels are written.
const LEAST_VERSION: c_int = 11_000;
/// Of `cuDeviceGetAttribute`.
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;
/// Of `cuModuleLoadDataEx`: where the compiler writes what it refuses, and how much room there is.
const ERROR_LOG: c_int = 5;
const ERROR_LOG_BYTES: c_int = 6;

type Status = c_int;
/// A context, a module or a function of the driver.
type Handle = *mut c_void;

/// Declares the table, and how it is filled.
macro_rules! functions {
    ($($field:ident = $name:literal: fn($($argument:ty),*);)*) => {
        /// The driver's functions that are used. Its header, cuda.h, says what they take.
        #[derive(Clone, Copy)]
        pub(crate) struct Functions {
            $(pub(crate) $field: unsafe extern "C" fn($($argument),*) -> Status,)*
        }

        impl Functions {
            /// Opens the driver's library.
            pub(crate) fn open() -> Result<Functions, Fault> {
                const NAME: &CStr = c"libcuda.so.1";
                // SAFETY: the name ends with zero. The library's initialisers are the driver's affair.
                let library = unsafe { libc::dlopen(NAME.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
                if library.is_null() {
                    let fault = "libcuda.so.1 is not here: install NVIDIA's driver, or start the container with \
                                 the card (--gpus all), or use the device cpu";
                    return Err(Fault(fault.to_owned()));
                }
                Ok(Functions {
                    $($field: {
                        let name = concat!($name, "\0");
                        // SAFETY: the library is open and is never closed; the name ends with zero.
                        let address = unsafe { libc::dlsym(library, name.as_ptr().cast()) };
                        if address.is_null() {
                            return Err(Fault(format!("the driver has no {}: install a newer one", $name)));
                        }
                        // SAFETY: the driver's header declares this function so; pointers to functions are as wide.
                        unsafe {
                            std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) -> Status>(address)
                        }
                    },)*
                })
            }
        }
    };
}

functions! {
    init = "cuInit": fn(c_uint);
    version = "cuDriverGetVersion": fn(*mut c_int);
    device_count = "cuDeviceGetCount": fn(*mut c_int);
    device_get = "cuDeviceGet": fn(*mut c_int, c_int);
    device_name = "cuDeviceGetName": fn(*mut c_char, c_int, c_int);
    device_attribute = "cuDeviceGetAttribute": fn(*mut c_int, c_int, c_int);
    context_retain = "cuDevicePrimaryCtxRetain": fn(*mut Handle, c_int);
    context_release = "cuDevicePrimaryCtxRelease_v2": fn(c_int);
    context_set = "cuCtxSetCurrent": fn(Handle);
    memory_info = "cuMemGetInfo_v2": fn(*mut usize, *mut usize);
    allocate = "cuMemAlloc_v2": fn(*mut u64, usize);
    free = "cuMemFree_v2": fn(u64);
    fill = "cuMemsetD8_v2": fn(u64, u8, usize);
    upload = "cuMemcpyHtoD_v2": fn(u64, *const c_void, usize);
    download = "cuMemcpyDtoH_v2": fn(*mut c_void, u64, usize);
    copy = "cuMemcpyDtoD_v2": fn(u64, u64, usize);
    module_load = "cuModuleLoadDataEx": fn(*mut Handle, *const c_void, c_uint, *mut c_int, *mut *mut c_void);
    module_unload = "cuModuleUnload": fn(Handle);
    function = "cuModuleGetFunction": fn(*mut Handle, Handle, *const c_char);
    launch = "cuLaunchKernel": fn(Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void);
    error_name = "cuGetErrorName": fn(Status, *mut *const c_char);
}

impl std::fmt::Debug for Functions {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Functions of libcuda.so.1")
    }
}

/// A card with the kernels on it.
#[derive(Debug)]
pub(crate) struct Driver {
    functions: Functions,
    card: c_int,
    name: String,
    context: Handle,
    module: Handle,
    kernels: BTreeMap<&'static str, Handle>,
    buffers: Vec<u64>,
}

// SAFETY: contexts may be used by any thread, one at a time; every call makes the context current on its thread.
unsafe impl Send for Driver {}

impl Driver {
    /// The first card, with the kernels of `ptx` compiled for it.
    pub(crate) fn new(functions: Functions, ptx: &str) -> Result<Driver, Fault> {
        let check = |status, what: &str| checked(&functions, status, what);
        // SAFETY: here and below, functions of the driver get what its header asks for, and places to write to that live
        // through the call.
        check(unsafe { (functions.init)(0) }, "starting the driver")?;
        let (mut count, mut card) = (0, 0);
        // SAFETY: as above.
        check(unsafe { (functions.device_count)(&raw mut count) }, "counting cards")?;
        if count < 1 {
            let fault =
                "the driver sees no card: check nvidia-smi and CUDA_VISIBLE_DEVICES, or use the device cpu";
            return Err(Fault(fault.to_owned()));
        }
        // SAFETY: as above.
        check(unsafe { (functions.device_get)(&raw mut card, 0) }, "taking the first card")?;
        let mut name = [0 as c_char; 128];
        // SAFETY: as above; the name is cut off and ends with zero.
        check(unsafe { (functions.device_name)(name.as_mut_ptr(), 127, card) }, "reading the card's name")?;
        // SAFETY: the last byte is zero.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let attribute = |attribute| {
            let mut value = 0;
            // SAFETY: as above.
            let status = unsafe { (functions.device_attribute)(&raw mut value, attribute, card) };
            check(status, "reading the card's compute capability").map(|()| value)
        };
        let capability = (attribute(CAPABILITY_MAJOR)?, attribute(CAPABILITY_MINOR)?);
        if capability < LEAST_CAPABILITY {
            return Err(Fault(format!(
                "{name} has compute capability {}.{}, and 8.0 (Ampere) is the least: use another card, or the device cpu",
                capability.0, capability.1
            )));
        }
        let mut version = 0;
        // SAFETY: as above.
        check(unsafe { (functions.version)(&raw mut version) }, "reading the driver's version")?;
        let name = format!("{name} with CUDA {}.{}", version / 1000, version % 1000 / 10);
        if version < LEAST_VERSION {
            return Err(Fault(format!(
                "{name}: the kernels need CUDA 11.0: update the driver, or use the device cpu"
            )));
        }
        let mut context = std::ptr::null_mut();
        // SAFETY: as above.
        check(unsafe { (functions.context_retain)(&raw mut context, card) }, "opening the card")?;
        let (module, kernels, buffers) = (std::ptr::null_mut(), BTreeMap::new(), Vec::new());
        let mut driver = Driver { functions, card, name, context, module, kernels, buffers };
        driver.make_current()?;
        driver.load(ptx)?;
        Ok(driver)
    }

    fn check(&self, status: Status, what: &str) -> Result<(), Fault> {
        checked(&self.functions, status, what)
    }

    fn make_current(&self) -> Result<(), Fault> {
        // SAFETY: the context is held until this value is dropped.
        self.check(unsafe { (self.functions.context_set)(self.context) }, "using the card")
    }

    /// Has the driver compile the kernels.
    fn load(&mut self, ptx: &str) -> Result<(), Fault> {
        let text = CString::new(ptx).map_err(|_| Fault("the kernels have a zero byte".to_owned()))?;
        let mut log = vec![0u8; 4096];
        let mut options = [ERROR_LOG, ERROR_LOG_BYTES];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), log.len() as *mut c_void];
        // SAFETY: the text ends with zero; there are two options with a value each, and the log is as long as they say.
        let status = unsafe {
            let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
            (self.functions.module_load)(&raw mut self.module, text.as_ptr().cast(), 2, options, values)
        };
        let log = String::from_utf8_lossy(&log);
        self.check(status, &format!("compiling the kernels ({})", log.trim_end_matches('\0').trim()))
    }

    fn kernel(&mut self, name: &'static str) -> Result<Handle, Fault> {
        if let Some(&kernel) = self.kernels.get(name) {
            return Ok(kernel);
        }
        let (mut kernel, text) = (std::ptr::null_mut(), CString::new(name));
        let text = text.map_err(|_| Fault(format!("{name} is no name")))?;
        // SAFETY: the module is loaded, and the name ends with zero.
        let status = unsafe { (self.functions.function)(&raw mut kernel, self.module, text.as_ptr()) };
        self.check(status, &format!("finding the kernel {name}"))?;
        self.kernels.insert(name, kernel);
        Ok(kernel)
    }
}

fn checked(functions: &Functions, status: Status, what: &str) -> Result<(), Fault> {
    if status == 0 {
        return Ok(());
    }
    let mut name = std::ptr::null();
    // SAFETY: the driver writes the address of a text of its own, or null.
    let found = unsafe { (functions.error_name)(status, &raw mut name) } == 0 && !name.is_null();
    // SAFETY: as above; such texts end with zero and live as long as the library.
    let name = if found { unsafe { CStr::from_ptr(name) }.to_string_lossy() } else { "unknown".into() };
    Err(Fault(format!("{what}: the driver says {name} ({status}); nvidia-smi shows the card's state")))
}

impl Device for Driver {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn free_bytes(&self) -> Result<u64, Fault> {
        self.make_current()?;
        let (mut free, mut all) = (0, 0);
        // SAFETY: two places to write to.
        let status = unsafe { (self.functions.memory_info)(&raw mut free, &raw mut all) };
        self.check(status, "reading the card's memory").map(|()| free as u64)
    }

    fn allocate(&mut self, bytes: usize) -> Result<Pointer, Fault> {
        self.make_current()?;
        // The driver refuses empty buffers.
        let (mut address, bytes) = (0, bytes.max(1));
        // SAFETY: a place to write to; the driver refuses sizes that it does not have.
        let status = unsafe { (self.functions.allocate)(&raw mut address, bytes) };
        self.check(status, &format!("taking {bytes} bytes of the card's memory; use a smaller kv_budget"))?;
        self.buffers.push(address);
        // SAFETY: the buffer was just taken, with this size.
        self.check(unsafe { (self.functions.fill)(address, 0, bytes) }, "clearing the card's memory")?;
        Ok(Pointer(address))
    }

    fn upload(&mut self, to: Pointer, bytes: &[u8]) -> Result<(), Fault> {
        self.make_current()?;
        // SAFETY: the driver checks that the card's addresses are in a buffer, and reads the slice.
        let status = unsafe { (self.functions.upload)(to.0, bytes.as_ptr().cast(), bytes.len()) };
        self.check(status, "writing to the card")
    }

    fn download(&mut self, from: Pointer, to: &mut [u8]) -> Result<(), Fault> {
        self.make_current()?;
        // SAFETY: as above; the call waits for all launches before it, and fills the slice.
        let status = unsafe { (self.functions.download)(to.as_mut_ptr().cast(), from.0, to.len()) };
        self.check(status, "reading from the card")
    }

    fn copy(&mut self, from: Pointer, to: Pointer, bytes: usize) -> Result<(), Fault> {
        self.make_current()?;
        // SAFETY: the driver checks that both parts are in buffers.
        let status = unsafe { (self.functions.copy)(to.0, from.0, bytes) };
        self.check(status, "copying within the card's memory")
    }

    fn launch(&mut self, kernel: &'static str, grid: Grid, args: &[Arg]) -> Result<(), Fault> {
        self.make_current()?;
        let function = self.kernel(kernel)?;
        let mut values: Vec<u64> = args
            .iter()
            .map(|arg| match arg {
                Arg::Pointer(pointer) => pointer.0,
                Arg::Word(word) => u64::from(*word),
                Arg::Float(value) => u64::from(value.to_bits()),
            })
            .collect();
        let mut places: Vec<*mut c_void> = values.iter_mut().map(|value| (&raw mut *value).cast()).collect();
        let [x, y, z] = grid.blocks;
        // SAFETY: the kernel takes as many arguments of these sizes (the interpreter checks that in tests), and those of four
        // bytes are the first four of eight. The driver reads them before it returns.
        let status = unsafe {
            let (arguments, none) = (places.as_mut_ptr(), std::ptr::null_mut());
            (self.functions.launch)(function, x, y, z, grid.threads, 1, 1, 0, none, arguments, none.cast())
        };
        self.check(status, &format!("starting {kernel}"))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Nobody hears what fails here.
        let _ = self.make_current();
        // SAFETY: each was taken once, and nothing uses them any more.
        unsafe {
            for &buffer in &self.buffers {
                (self.functions.free)(buffer);
            }
            if !self.module.is_null() {
                (self.functions.module_unload)(self.module);
            }
            (self.functions.context_release)(self.card);
        }
    }
}
