//! Reading PTX, as far as clang writes it for kernels.cu: kernels, their parameters and shared memory, and instructions.
//!
//! An opcode or an operand that is not known is an error with its line: nothing is skipped. Run by `interpreter`.

use std::collections::BTreeMap;

/// What a register holds when a thread begins. Constants and parameters have registers, too, so that every operand is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filled {
    Constant(u64),
    /// Index of the parameter.
    Parameter(usize),
    /// The thread's number in its block.
    Thread,
    /// The block's place in one dimension of the grid.
    Block(usize),
}

/// The type of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Type {
    pub(crate) bits: u32,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Unsigned,
    Signed,
    Float,
    Predicate,
}

impl Type {
    /// All bits of a value of this type.
    pub(crate) fn mask(self) -> u64 {
        if self.bits == 64 { u64::MAX } else { (1 << self.bits) - 1 }
    }

    pub(crate) fn bytes(self) -> usize {
        self.bits as usize / 8
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    Global,
    Shared,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// These hold also where one of them is no number.
    EqU,
    NeU,
    LtU,
    LeU,
    GtU,
    GeU,
}

/// How a conversion rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounding {
    /// Exact, or of whole numbers.
    None,
    /// To the nearest float.
    Nearest,
    /// To the nearest whole number.
    Whole,
    /// To a whole number towards zero.
    Truncated,
}

/// What an instruction does with its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Move,
    Add,
    Sub,
    MulLow,
    MulWide,
    MulHigh,
    Div,
    Rem,
    Min,
    Max,
    And,
    Or,
    Xor,
    Not,
    Neg,
    Shl,
    Shr,
    Extract,
    Fma,
    Mad,
    Sqrt,
    Set(Compare),
    Select,
    Convert {
        from: Type,
        rounding: Rounding,
    },
    Load(Space),
    Store(Space),
    Branch,
    Return,
    Barrier,
    Shuffle,
    /// Whether the bytes of each operand have signs.
    Multiply([bool; 2]),
}

/// One instruction. Vectors, which loads, stores and matrix products have, are registers in a row.
#[derive(Debug, Clone)]
pub(crate) struct Instruction {
    pub(crate) op: Op,
    pub(crate) ty: Type,
    /// Registers that are written.
    pub(crate) to: Vec<u32>,
    /// Registers that are read.
    pub(crate) from: Vec<u32>,
    /// Added to an address, or where a branch goes.
    pub(crate) offset: u64,
    /// The predicate that guards it, and whether it must be false.
    pub(crate) guard: Option<(u32, bool)>,
    /// In the file.
    pub(crate) line: usize,
}

/// A kernel.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// Each parameter's type.
    pub(crate) parameters: Vec<Type>,
    pub(crate) max_threads: u32,
    pub(crate) shared_bytes: usize,
    pub(crate) n_registers: usize,
    pub(crate) filled: Vec<(u32, Filled)>,
    pub(crate) instructions: Vec<Instruction>,
}

/// Reads all kernels of a module, by name; an error says where and what.
pub(crate) fn read(text: &str) -> Result<BTreeMap<String, Kernel>, String> {
    let mut kernels = BTreeMap::new();
    let mut reader: Option<(String, Reader)> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let fault = |what: String| format!("line {number}: {what}: {}", line.trim());
        let line = line.split("//").next().unwrap_or_default().trim();
        if let Some(name) = line.strip_prefix(".visible .entry ") {
            reader = Some((name.trim_end_matches('(').to_owned(), Reader::default()));
            continue;
        }
        let Some((name, kernel)) = &mut reader else { continue };
        if line == "}" {
            let kernel = std::mem::take(kernel);
            kernels.insert(name.clone(), kernel.finish().map_err(fault)?);
            reader = None;
        } else {
            kernel.line(line, number).map_err(fault)?;
        }
    }
    Ok(kernels)
}

/// A kernel that is being read.
#[derive(Default)]
struct Reader {
    parameters: Vec<(String, Type)>,
    max_threads: u32,
    shared_bytes: usize,
    shared: BTreeMap<String, u64>,
    registers: BTreeMap<String, u32>,
    filled: Vec<(u32, Filled)>,
    labels: BTreeMap<String, usize>,
    /// Branches and the labels that they go to.
    branches: Vec<(usize, String)>,
    instructions: Vec<Instruction>,
}

impl Reader {
    fn finish(mut self) -> Result<Kernel, String> {
        for (at, label) in &self.branches {
            let target = self.labels.get(label).ok_or_else(|| format!("no label {label}"))?;
            self.instructions[*at].offset = *target as u64;
        }
        Ok(Kernel {
            parameters: self.parameters.into_iter().map(|(_, ty)| ty).collect(),
            max_threads: self.max_threads,
            shared_bytes: self.shared_bytes,
            n_registers: self.registers.len(),
            filled: self.filled,
            instructions: self.instructions,
        })
    }

    fn line(&mut self, line: &str, number: usize) -> Result<(), String> {
        if line.is_empty() || line == "{" || line == ")" || line.starts_with(".reg") {
            return Ok(());
        }
        if let Some(rest) = line.strip_prefix(".param .") {
            let (ty, name) = rest.split_once(' ').ok_or("a parameter without a name")?;
            self.parameters.push((name.trim_end_matches(',').trim().to_owned(), type_of(ty)?));
            return Ok(());
        }
        if let Some(rest) = line.strip_prefix(".maxntid ") {
            let first = rest.split(',').next().unwrap_or_default();
            self.max_threads = first.trim().parse().map_err(|_| "not a number of threads")?;
            return Ok(());
        }
        if let Some(rest) = line.strip_prefix(".shared .align ") {
            return self.shared(rest);
        }
        if let Some(label) = line.strip_suffix(':') {
            self.labels.insert(label.to_owned(), self.instructions.len());
            return Ok(());
        }
        let line = line.strip_suffix(';').ok_or("not a statement")?;
        let (guard, line) = match line.strip_prefix('@') {
            None => (None, line),
            Some(rest) => {
                let (name, rest) =
                    rest.split_once(char::is_whitespace).ok_or("a guard without a statement")?;
                let negated = name.starts_with('!');
                (Some((self.register(name.trim_start_matches('!')), negated)), rest.trim())
            }
        };
        let (name, operands) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let mut instruction = self.instruction(name, &split(operands))?;
        instruction.guard = guard;
        instruction.line = number;
        self.instructions.push(instruction);
        Ok(())
    }

    /// `4 .b8 name[32];` or `4 .f32 name;`
    fn shared(&mut self, rest: &str) -> Result<(), String> {
        let mut words = rest.trim_end_matches(';').split_whitespace();
        let mut next = || words.next().ok_or("shared memory without a name");
        let align: usize = next()?.parse().map_err(|_| "not an alignment")?;
        let ty = type_of(next()?.trim_start_matches('.'))?;
        let name = next()?;
        let (name, count) = match name.split_once('[') {
            None => (name, 1),
            Some((name, count)) => {
                (name, count.trim_end_matches(']').parse::<usize>().map_err(|_| "not a size")?)
            }
        };
        let start = self.shared_bytes.next_multiple_of(align);
        self.shared.insert(name.to_owned(), start as u64);
        self.shared_bytes = start + count * ty.bytes();
        Ok(())
    }

    fn register(&mut self, name: &str) -> u32 {
        let next = self.registers.len() as u32;
        *self.registers.entry(name.to_owned()).or_insert(next)
    }

    /// The register of an operand; what is no register gets one that is filled.
    fn source(&mut self, text: &str) -> Result<u32, String> {
        if let Some(&register) = self.registers.get(text) {
            return Ok(register);
        }
        let filled = match text {
            "%tid.x" => Some(Filled::Thread),
            "%ctaid.x" => Some(Filled::Block(0)),
            "%ctaid.y" => Some(Filled::Block(1)),
            "%ctaid.z" => Some(Filled::Block(2)),
            _ if text.starts_with('%') => None,
            _ => Some(self.constant(text).ok_or_else(|| format!("unknown operand {text}"))?),
        };
        let register = self.register(text);
        self.filled.extend(filled.map(|filled| (register, filled)));
        Ok(register)
    }

    fn constant(&self, text: &str) -> Option<Filled> {
        if let Some(index) = self.parameters.iter().position(|(name, _)| name == text) {
            return Some(Filled::Parameter(index));
        }
        let number = match text.strip_prefix("0f").or_else(|| text.strip_prefix("0x")) {
            Some(bits) => u64::from_str_radix(bits, 16).ok(),
            None => text.parse::<i64>().ok().map(|number| number as u64),
        };
        number.or_else(|| self.shared.get(text).copied()).map(Filled::Constant)
    }

    fn sources(&mut self, texts: &[&str]) -> Result<Vec<u32>, String> {
        let single = texts.iter().flat_map(|text| text.trim_matches(['{', '}']).split(',').map(str::trim));
        single.map(|text| self.source(text)).collect()
    }

    fn destinations(&mut self, text: &str) -> Vec<u32> {
        text.trim_matches(['{', '}']).split(',').map(|name| self.register(name.trim())).collect()
    }

    /// `[%rd1+16]` or `[symbol+4]`: what is in a register, and what is added.
    fn address(&mut self, text: &str) -> Result<(u32, u64), String> {
        let inner = text.trim_matches(['[', ']']);
        let (base, offset) = inner.split_once('+').unwrap_or((inner, "0"));
        let offset: i64 = offset.parse().map_err(|_| "not an offset")?;
        Ok((self.source(base)?, offset as u64))
    }

    fn instruction(&mut self, name: &str, operands: &[&str]) -> Result<Instruction, String> {
        let parts: Vec<&str> = name.split('.').collect();
        // Of a conversion, whose name ends with both types, it is the first of them.
        let n_types = if parts[0] == "cvt" { 2 } else { 1 };
        let types = parts.iter().rev().filter_map(|part| type_of(part).ok());
        let ty = types.take(n_types).last().unwrap_or(PREDICATE);
        let (mut to, mut from, mut offset) = (Vec::new(), Vec::new(), 0);
        let op = match parts[0] {
            "ld" if parts[1] == "param" => {
                from = vec![self.address(operands[1])?.0];
                to = self.destinations(operands[0]);
                Op::Move
            }
            "ld" => {
                let (base, plus) = self.address(operands[1])?;
                (from, offset) = (vec![base], plus);
                to = self.destinations(operands[0]);
                Op::Load(space_of(parts[1])?)
            }
            "st" => {
                let (base, plus) = self.address(operands[0])?;
                (from, offset) = (vec![base], plus);
                from.extend(self.sources(&operands[1..])?);
                Op::Store(space_of(parts[1])?)
            }
            "bra" => {
                self.branches.push((self.instructions.len(), operands[0].to_owned()));
                Op::Branch
            }
            "ret" => Op::Return,
            "bar" => Op::Barrier,
            _ => {
                let (first, rest) = operands.split_first().ok_or("no operands")?;
                to = self.destinations(first);
                from = self.sources(rest)?;
                arithmetic(&parts)?
            }
        };
        let needs_rounding = matches!(op, Op::Add | Op::Sub | Op::MulLow | Op::Div | Op::Fma | Op::Sqrt);
        if ty.kind == Kind::Float && needs_rounding && parts[1] != "rn" {
            return Err("a float operation without its rounding".to_owned());
        }
        Ok(Instruction { op, ty, to, from, offset, guard: None, line: 0 })
    }
}

const PREDICATE: Type = Type { bits: 1, kind: Kind::Predicate };

/// Operands, of which vectors stay together.
fn split(operands: &str) -> Vec<&str> {
    let mut depth = 0;
    let parts = operands.split(|c: char| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });
    parts.map(str::trim).filter(|part| !part.is_empty()).collect()
}

fn type_of(name: &str) -> Result<Type, String> {
    if name == "pred" {
        return Ok(PREDICATE);
    }
    let (kind, bits) = name.split_at_checked(1).ok_or("no type")?;
    let bits = bits.parse().map_err(|_| format!("unknown type {name}"))?;
    let kind = match kind {
        "u" | "b" => Kind::Unsigned,
        "s" => Kind::Signed,
        "f" => Kind::Float,
        _ => return Err(format!("unknown type {name}")),
    };
    Ok(Type { bits, kind })
}

fn space_of(name: &str) -> Result<Space, String> {
    match name {
        "global" => Ok(Space::Global),
        "shared" => Ok(Space::Shared),
        _ => Err(format!("unknown state space {name}")),
    }
}

fn arithmetic(parts: &[&str]) -> Result<Op, String> {
    let compare = |name: &str| {
        Ok(match name {
            "eq" => Compare::Eq,
            "ne" => Compare::Ne,
            "lt" => Compare::Lt,
            "le" => Compare::Le,
            "gt" => Compare::Gt,
            "ge" => Compare::Ge,
            "equ" => Compare::EqU,
            "neu" => Compare::NeU,
            "ltu" => Compare::LtU,
            "leu" => Compare::LeU,
            "gtu" => Compare::GtU,
            "geu" => Compare::GeU,
            _ => return Err(format!("unknown comparison {name}")),
        })
    };
    Ok(match (parts[0], &parts[1..]) {
        ("mov" | "cvta", _) => Op::Move,
        ("add", _) => Op::Add,
        ("sub", _) => Op::Sub,
        ("mul", ["wide", _]) => Op::MulWide,
        ("mul", ["hi", "u32"]) => Op::MulHigh,
        ("mul", ["lo", _] | ["rn", _]) => Op::MulLow,
        ("mad", ["lo", _]) => Op::Mad,
        ("div", _) => Op::Div,
        ("rem", _) => Op::Rem,
        ("min", [_]) => Op::Min,
        ("max", [_]) => Op::Max,
        ("and", _) => Op::And,
        ("or", _) => Op::Or,
        ("xor", _) => Op::Xor,
        ("not", _) => Op::Not,
        ("neg", [_]) => Op::Neg,
        ("shl", _) => Op::Shl,
        ("shr", _) => Op::Shr,
        ("bfe", ["u32"]) => Op::Extract,
        ("fma", ["rn", "f32"]) => Op::Fma,
        ("sqrt", ["rn", "f32"]) => Op::Sqrt,
        ("setp", [name, _]) => Op::Set(compare(name)?),
        ("selp", _) => Op::Select,
        ("cvt", [.., from]) => {
            let rounding = match parts[1] {
                "rn" => Rounding::Nearest,
                "rni" => Rounding::Whole,
                "rzi" => Rounding::Truncated,
                _ if parts.len() == 3 => Rounding::None,
                _ => return Err(format!("unknown rounding {}", parts[1])),
            };
            Op::Convert { from: type_of(from)?, rounding }
        }
        ("shfl", ["sync", "bfly", "b32"]) => Op::Shuffle,
        (
            "mma",
            ["sync", "aligned", "m16n8k32", "row", "col", "s32", a @ ("u8" | "s8"), b @ ("u8" | "s8"), "s32"],
        ) => Op::Multiply([*a == "s8", *b == "s8"]),
        _ => return Err("unknown instruction".to_owned()),
    })
}
