//! Thirty-two threads in lockstep.
#![allow(clippy::needless_range_loop)] // Indices name threads here; iterators would hide them.

use super::memory::{Bytes, Global, Toucher};
use crate::gguf::rows::{f16_to_f32, f32_to_f16};
use crate::gpu::ptx::{Compare, Filled, Instruction, Kernel, Kind, Op, Rounding, Space, Type};

const N: usize = 32;
const ALL: u32 = u32::MAX;

/// A register of each thread.
type Lanes = [u64; N];

/// Why a warp stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pause {
    Barrier,
    End,
}

/// What a block's warps share.
pub(super) struct Setting<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) parameters: &'a [u64],
    pub(super) place: [u32; 3],
    pub(super) launch: u32,
    pub(super) block: u32,
    /// Barriers so far.
    pub(super) epoch: u32,
    pub(super) global: &'a mut Global,
    pub(super) shared: &'a mut Bytes,
}

/// A warp of a block.
pub(super) struct Warp {
    index: u32,
    registers: Vec<Lanes>,
    /// Where each thread continues.
    next: [usize; N],
    /// Threads that have not ended.
    alive: u32,
}

fn float(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn bits(value: f32) -> u64 {
    u64::from(value.to_bits())
}

/// A value of a signed type, from its bits.
fn signed(ty: Type, value: u64) -> i64 {
    let unused = 64 - ty.bits;
    (value << unused) as i64 >> unused
}

impl Warp {
    pub(super) fn new(kernel: &Kernel, index: u32) -> Warp {
        Warp { index, registers: vec![[0; N]; kernel.n_registers], next: [0; N], alive: ALL }
    }

    /// Back to the kernel's beginning, for another block. Other registers keep what they held: nothing reads them unwritten.
    pub(super) fn restart(&mut self, setting: &Setting<'_>) {
        (self.next, self.alive) = ([0; N], ALL);
        for &(register, filled) in &setting.kernel.filled {
            self.registers[register as usize] = match filled {
                Filled::Constant(value) => [value; N],
                Filled::Parameter(index) => [setting.parameters[index]; N],
                Filled::Block(dim) => [u64::from(setting.place[dim]); N],
                Filled::Thread => std::array::from_fn(|lane| u64::from(self.thread(lane))),
            };
        }
    }

    /// A thread's number in its block.
    fn thread(&self, lane: usize) -> u32 {
        self.index * N as u32 + lane as u32
    }

    /// Runs until a barrier or the end.
    pub(super) fn run(&mut self, setting: &mut Setting<'_>) -> Result<Pause, String> {
        loop {
            // Those that are behind go first, so that ways meet again.
            let alive = (0..N).filter(|&lane| self.alive >> lane & 1 == 1);
            let Some(at) = alive.clone().map(|lane| self.next[lane]).min() else { return Ok(Pause::End) };
            let together = alive.clone().filter(|&lane| self.next[lane] == at);
            let mask = together.fold(0, |mask, lane| mask | 1u32 << lane);
            let others = alive.map(|lane| self.next[lane]).filter(|&next| next != at).min();
            if let Some(pause) = self.run_together(setting, at, mask, others.unwrap_or(usize::MAX))? {
                return Ok(pause);
            }
        }
    }

    /// Runs the threads of `mask` from `at` until they part, or come to where others are.
    fn run_together(
        &mut self,
        setting: &mut Setting<'_>,
        mut at: usize,
        mask: u32,
        others: usize,
    ) -> Result<Option<Pause>, String> {
        loop {
            let kernel = setting.kernel;
            let instruction = kernel.instructions.get(at).ok_or("it runs beyond its end")?;
            let guarded = mask & self.guard(instruction);
            at += 1;
            match instruction.op {
                Op::Branch => {
                    let target = instruction.offset as usize;
                    if guarded != 0 && guarded != mask || others != usize::MAX {
                        self.set_next(mask & !guarded, at);
                        self.set_next(guarded, target);
                        return Ok(None);
                    }
                    if guarded != 0 {
                        at = target;
                    }
                }
                Op::Return => {
                    self.alive &= !guarded;
                    self.set_next(mask & !guarded, at);
                    return Ok(None);
                }
                Op::Barrier => {
                    if guarded != self.alive {
                        return Err(format!(
                            "line {}: a barrier that not all threads reach",
                            instruction.line
                        ));
                    }
                    self.set_next(mask, at);
                    return Ok(Some(Pause::Barrier));
                }
                _ => {
                    if guarded != 0 {
                        self.execute(setting, instruction, guarded)
                            .map_err(|fault| format!("line {}: {fault}", instruction.line))?;
                    }
                    if at >= others {
                        self.set_next(mask, at);
                        return Ok(None);
                    }
                }
            }
        }
    }

    fn set_next(&mut self, mask: u32, next: usize) {
        lanes(mask).for_each(|lane| self.next[lane] = next);
    }

    /// Threads whose guard lets them.
    fn guard(&self, instruction: &Instruction) -> u32 {
        let Some((register, negated)) = instruction.guard else { return ALL };
        let values = &self.registers[register as usize];
        let mask = (0..N).fold(0, |mask, lane| mask | ((values[lane] & 1) as u32) << lane);
        if negated { !mask } else { mask }
    }

    fn write(&mut self, register: u32, mask: u32, values: &Lanes) {
        let to = &mut self.registers[register as usize];
        if mask == ALL {
            *to = *values;
        } else {
            lanes(mask).for_each(|lane| to[lane] = values[lane]);
        }
    }

    fn execute(
        &mut self,
        setting: &mut Setting<'_>,
        instruction: &Instruction,
        mask: u32,
    ) -> Result<(), String> {
        match instruction.op {
            Op::Load(space) => return self.load(setting, instruction, space, mask),
            Op::Store(space) => return self.store(setting, instruction, space, mask),
            Op::Multiply(signs) => return self.multiply(instruction, signs, mask),
            Op::Shuffle => return self.shuffle(instruction, mask),
            _ => {}
        }
        let operand =
            |i: usize| instruction.from.get(i).map_or(&[0; N], |&from| &self.registers[from as usize]);
        let (a, b, c) = (operand(0), operand(1), operand(2));
        let result = if instruction.ty.kind == Kind::Float || matches!(instruction.op, Op::Convert { .. }) {
            on_floats(instruction, a, b, c)
        } else {
            on_integers(instruction, a, b, c)
        };
        let result = result.ok_or_else(|| format!("{:?} of {:?}", instruction.op, instruction.ty))?;
        self.write(instruction.to[0], mask, &result);
        Ok(())
    }

    fn toucher(&self, setting: &Setting<'_>, lane: usize) -> Toucher {
        Toucher {
            launch: setting.launch,
            block: setting.block,
            epoch: setting.epoch,
            thread: self.thread(lane),
        }
    }

    fn load(
        &mut self,
        setting: &mut Setting<'_>,
        instruction: &Instruction,
        space: Space,
        mask: u32,
    ) -> Result<(), String> {
        let base = self.registers[instruction.from[0] as usize];
        let size = instruction.ty.bytes();
        for lane in lanes(mask) {
            let who = self.toucher(setting, lane);
            let (bytes, at) = find(setting, space, base[lane].wrapping_add(instruction.offset))?;
            aligned(at, size * instruction.to.len())?;
            for (i, &register) in instruction.to.iter().enumerate() {
                let value = bytes.load(at + (i * size) as u64, size, who)?;
                self.registers[register as usize][lane] = value;
            }
        }
        Ok(())
    }

    fn store(
        &mut self,
        setting: &mut Setting<'_>,
        instruction: &Instruction,
        space: Space,
        mask: u32,
    ) -> Result<(), String> {
        let (base, values) = (&self.registers[instruction.from[0] as usize], &instruction.from[1..]);
        let size = instruction.ty.bytes();
        for lane in lanes(mask) {
            let who = self.toucher(setting, lane);
            let (bytes, at) = find(setting, space, base[lane].wrapping_add(instruction.offset))?;
            aligned(at, size * values.len())?;
            for (i, &from) in values.iter().enumerate() {
                bytes.store(at + (i * size) as u64, size, self.registers[from as usize][lane], who)?;
            }
        }
        Ok(())
    }

    /// Each thread takes the value of the one whose number differs in some bits.
    fn shuffle(&mut self, instruction: &Instruction, mask: u32) -> Result<(), String> {
        if mask != ALL {
            return Err("threads are missing from an exchange".to_owned());
        }
        let registers: [u32; 4] =
            instruction.from.as_slice().try_into().map_err(|_| "an exchange has four operands")?;
        let [value, distance, clamp, members] = registers.map(|from| &self.registers[from as usize]);
        if clamp[0] != 31 || members[0] as u32 != ALL {
            return Err("an exchange of other than whole warps".to_owned());
        }
        let result = std::array::from_fn(|lane| value[(lane ^ distance[lane] as usize) % N]);
        self.write(instruction.to[0], mask, &result);
        Ok(())
    }

    /// A product of fragments: 16 rows × 32 bytes, 32 × 8 bytes, each with or without signs, on 16 × 8 sums.
    ///
    /// Thread t has of rows t / 4 and t / 4 + 8 the inputs from 4 (t mod 4) and from 16 + 4 (t mod 4) on, of column t / 4 the
    /// same inputs, and of the sums columns 2 (t mod 4) and the next of both rows.
    fn multiply(&mut self, instruction: &Instruction, signs: [bool; 2], mask: u32) -> Result<(), String> {
        if mask != ALL || instruction.from.len() != 10 || instruction.to.len() != 4 {
            return Err("threads or operands are missing from a product".to_owned());
        }
        let operand = |part: usize| &self.registers[instruction.from[part] as usize];
        let [codes_sign, inputs_sign] =
            signs.map(|signed| move |byte: u8| if signed { i32::from(byte as i8) } else { i32::from(byte) });
        let mut codes = [[0i32; 32]; 16];
        let mut inputs = [[0i32; 32]; 8];
        for lane in 0..N {
            let (row, four) = (lane / 4, 4 * (lane % 4));
            for part in 0..4 {
                let bytes = (operand(part)[lane] as u32).to_le_bytes();
                codes[row + part % 2 * 8][four + part / 2 * 16..][..4]
                    .copy_from_slice(&bytes.map(codes_sign));
            }
            for part in 0..2 {
                let bytes = (operand(4 + part)[lane] as u32).to_le_bytes();
                inputs[row][four + part * 16..][..4].copy_from_slice(&bytes.map(inputs_sign));
            }
        }
        let mut sums: [Lanes; 4] = std::array::from_fn(|part| *operand(6 + part));
        for (part, sums) in sums.iter_mut().enumerate() {
            for (lane, sum) in sums.iter_mut().enumerate() {
                let (row, column) = (lane / 4 + part / 2 * 8, lane % 4 * 2 + part % 2);
                let products: [i32; 32] = std::array::from_fn(|i| codes[row][i] * inputs[column][i]);
                *sum = u64::from((*sum as u32).wrapping_add_signed(products.iter().sum()));
            }
        }
        for (&to, sums) in instruction.to.iter().zip(&sums) {
            self.write(to, mask, sums);
        }
        Ok(())
    }
}

/// The lanes of a mask.
fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    (0..N).filter(move |lane| mask >> lane & 1 == 1)
}

fn aligned(at: u64, size: usize) -> Result<(), String> {
    if at.is_multiple_of(size as u64) { Ok(()) } else { Err(format!("{size} bytes at {at} are not aligned")) }
}

fn find<'a>(
    setting: &'a mut Setting<'_>,
    space: Space,
    address: u64,
) -> Result<(&'a mut Bytes, u64), String> {
    match space {
        Space::Global => setting.global.find(address),
        Space::Shared => Ok((&mut *setting.shared, address)),
    }
}

fn map1(a: &Lanes, f: impl Fn(u64) -> u64) -> Option<Lanes> {
    Some(std::array::from_fn(|lane| f(a[lane])))
}

fn map2(a: &Lanes, b: &Lanes, f: impl Fn(u64, u64) -> u64) -> Option<Lanes> {
    Some(std::array::from_fn(|lane| f(a[lane], b[lane])))
}

fn compare<T: PartialOrd>(how: Compare, a: T, b: T) -> bool {
    match how {
        Compare::Eq => a == b,
        // Neither is less where one is no number.
        Compare::Ne => a.partial_cmp(&b).is_some_and(std::cmp::Ordering::is_ne),
        Compare::Lt => a < b,
        Compare::Le => a <= b,
        Compare::Gt => a > b,
        Compare::Ge => a >= b,
        Compare::EqU => !compare(Compare::Ne, a, b),
        Compare::NeU => !compare(Compare::Eq, a, b),
        Compare::LtU => !compare(Compare::Ge, a, b),
        Compare::LeU => !compare(Compare::Gt, a, b),
        Compare::GtU => !compare(Compare::Le, a, b),
        Compare::GeU => !compare(Compare::Lt, a, b),
    }
}

/// What PTX says of the larger and the smaller of two: a number, if one of them is none.
fn larger(a: f32, b: f32) -> f32 {
    if a > b || b.is_nan() { a } else { b }
}

fn smaller(a: f32, b: f32) -> f32 {
    if a < b || b.is_nan() { a } else { b }
}

fn on_floats(instruction: &Instruction, a: &Lanes, b: &Lanes, c: &Lanes) -> Option<Lanes> {
    let binary = |f: fn(f32, f32) -> f32| map2(a, b, |a, b| bits(f(float(a), float(b))));
    match instruction.op {
        Op::Move => Some(*a),
        Op::Add => binary(|a, b| a + b),
        Op::Sub => binary(|a, b| a - b),
        Op::MulLow => binary(|a, b| a * b),
        Op::Div => binary(|a, b| a / b),
        Op::Max => binary(larger),
        Op::Min => binary(smaller),
        Op::Neg => map1(a, |a| bits(-float(a))),
        Op::Sqrt => map1(a, |a| bits(float(a).sqrt())),
        Op::Fma => {
            Some(std::array::from_fn(|lane| bits(float(a[lane]).mul_add(float(b[lane]), float(c[lane])))))
        }
        Op::Set(how) => map2(a, b, |a, b| u64::from(compare(how, float(a), float(b)))),
        Op::Select => Some(std::array::from_fn(|lane| if c[lane] & 1 == 1 { a[lane] } else { b[lane] })),
        Op::Convert { from, rounding } => convert(instruction.ty, from, rounding, a),
        _ => None,
    }
}

fn convert(to: Type, from: Type, rounding: Rounding, a: &Lanes) -> Option<Lanes> {
    match (to.kind, from.kind, rounding) {
        (Kind::Float, Kind::Float, Rounding::Whole) => map1(a, |a| bits(float(a).round_ties_even())),
        (Kind::Float, Kind::Float, Rounding::None) if (to.bits, from.bits) == (32, 16) => {
            map1(a, |a| bits(f16_to_f32(a as u16)))
        }
        (Kind::Float, Kind::Float, Rounding::Nearest) if (to.bits, from.bits) == (16, 32) => {
            map1(a, |a| u64::from(f32_to_f16(float(a))))
        }
        (Kind::Float, Kind::Signed, Rounding::Nearest) => map1(a, |a| bits(signed(from, a) as f32)),
        (Kind::Signed, Kind::Float, Rounding::Truncated) if to.bits == 32 => {
            map1(a, |a| u64::from(float(a) as i32 as u32))
        }
        (Kind::Unsigned | Kind::Signed, Kind::Unsigned, Rounding::None) => {
            map1(a, |a| a & from.mask() & to.mask())
        }
        (Kind::Unsigned | Kind::Signed, Kind::Signed, Rounding::None) => {
            map1(a, |a| signed(from, a) as u64 & to.mask())
        }
        _ => None,
    }
}

fn on_integers(instruction: &Instruction, a: &Lanes, b: &Lanes, c: &Lanes) -> Option<Lanes> {
    let ty = instruction.ty;
    let (mask, is_signed) = (ty.mask(), ty.kind == Kind::Signed);
    match instruction.op {
        Op::Move => map1(a, |a| a & mask),
        Op::Add => map2(a, b, |a, b| a.wrapping_add(b) & mask),
        Op::Sub => map2(a, b, |a, b| a.wrapping_sub(b) & mask),
        Op::MulLow => map2(a, b, |a, b| a.wrapping_mul(b) & mask),
        Op::MulWide if is_signed => map2(a, b, |a, b| signed(ty, a).wrapping_mul(signed(ty, b)) as u64),
        Op::MulWide => map2(a, b, |a, b| (a & mask).wrapping_mul(b & mask)),
        Op::MulHigh => map2(a, b, |a, b| (a & mask).wrapping_mul(b & mask) >> 32),
        Op::Mad => {
            Some(std::array::from_fn(|lane| a[lane].wrapping_mul(b[lane]).wrapping_add(c[lane]) & mask))
        }
        // No thread that matters divides by zero; those that are not active may.
        Op::Div if !is_signed => map2(a, b, |a, b| a.checked_div(b).unwrap_or(mask)),
        Op::Rem if !is_signed => map2(a, b, |a, b| a.checked_rem(b).unwrap_or(a)),
        Op::Min if is_signed => map2(a, b, |a, b| signed(ty, a).min(signed(ty, b)) as u64 & mask),
        Op::Max if is_signed => map2(a, b, |a, b| signed(ty, a).max(signed(ty, b)) as u64 & mask),
        Op::Min => map2(a, b, |a, b| (a & mask).min(b & mask)),
        Op::Max => map2(a, b, |a, b| (a & mask).max(b & mask)),
        Op::And => map2(a, b, |a, b| a & b & mask),
        Op::Or => map2(a, b, |a, b| (a | b) & mask),
        Op::Xor => map2(a, b, |a, b| (a ^ b) & mask),
        Op::Not => map1(a, |a| !a & mask),
        Op::Neg => map1(a, |a| a.wrapping_neg() & mask),
        Op::Shl => map2(a, b, |a, b| if b >= u64::from(ty.bits) { 0 } else { a << b & mask }),
        Op::Shr if is_signed => map2(a, b, |a, b| (signed(ty, a) >> b.min(63)) as u64 & mask),
        Op::Shr => map2(a, b, |a, b| if b >= u64::from(ty.bits) { 0 } else { (a & mask) >> b }),
        Op::Extract => Some(std::array::from_fn(|lane| {
            let (start, len) = (b[lane].min(63), c[lane].min(32));
            (a[lane] & mask) >> start & ((1 << len) - 1)
        })),
        Op::Set(how) if is_signed => map2(a, b, |a, b| u64::from(compare(how, signed(ty, a), signed(ty, b)))),
        Op::Set(how) => map2(a, b, |a, b| u64::from(compare(how, a & mask, b & mask))),
        Op::Select => {
            Some(std::array::from_fn(|lane| if c[lane] & 1 == 1 { a[lane] } else { b[lane] } & mask))
        }
        _ => None,
    }
}
