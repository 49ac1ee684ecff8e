//! Programs that are attached, with the means to detach them and leave them loaded.

use std::io;

use aya::Ebpf;
use aya::programs::fentry::FEntryLinkId;
use aya::programs::fexit::FExitLinkId;
use aya::programs::kprobe::KProbeLinkId;
use aya::programs::raw_trace_point::RawTracePointLinkId;
use aya::programs::tp_btf::BtfTracePointLinkId;
use aya::programs::{Program, ProgramError};

use super::hooks::{Hook, HookProgram};
use super::verdict::Mechanism;

/// A program that is attached.
#[derive(Debug)]
pub struct Attached {
    name: &'static str,
    link: Link,
}

#[derive(Debug)]
enum Link {
    FEntry(FEntryLinkId),
    FExit(FExitLinkId),
    KProbe(KProbeLinkId),
    BtfTracePoint(BtfTracePointLinkId),
    RawTracePoint(RawTracePointLinkId),
}

fn program_of<'o>(object: &'o mut Ebpf, name: &str) -> Result<&'o mut Program, ProgramError> {
    object
        .program_mut(name)
        .ok_or_else(|| ProgramError::IOError(io::Error::other(format!("no program {name}"))))
}

fn tracepoint(hook: &Hook) -> &'static str {
    hook.tracepoint().unwrap_or(hook.target)
}

/// Has the verifier look at a program and keeps it in the kernel, unless it is there. Nothing runs yet.
///
/// # Errors
/// What the kernel says.
pub fn load(object: &mut Ebpf, btf: &aya::Btf, hook: &Hook, wanted: HookProgram) -> Result<(), ProgramError> {
    let program = program_of(object, wanted.name)?;
    if program.fd().is_ok() {
        return Ok(());
    }
    match program {
        Program::FEntry(program) => program.load(hook.target, btf),
        Program::FExit(program) => program.load(hook.target, btf),
        Program::KProbe(program) => program.load(),
        Program::BtfTracePoint(program) => program.load(tracepoint(hook), btf),
        Program::RawTracePoint(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Attaches a loaded program.
///
/// # Errors
/// What the kernel says.
pub fn attach(object: &mut Ebpf, hook: &Hook, wanted: HookProgram) -> Result<Attached, ProgramError> {
    let link = match program_of(object, wanted.name)? {
        Program::FEntry(program) => Link::FEntry(program.attach()?),
        Program::FExit(program) => Link::FExit(program.attach()?),
        Program::KProbe(program) => Link::KProbe(program.attach(hook.target, 0)?),
        Program::BtfTracePoint(program) => Link::BtfTracePoint(program.attach()?),
        Program::RawTracePoint(program) => Link::RawTracePoint(program.attach(tracepoint(hook))?),
        _ => return Err(ProgramError::UnexpectedProgramType),
    };
    Ok(Attached {
        name: wanted.name,
        link,
    })
}

/// Attaches all programs of a hook, which are loaded; all or none.
///
/// # Errors
/// What the kernel says of the first that it refuses.
pub fn attach_all(
    object: &mut Ebpf,
    hook: &Hook,
    mechanism: Mechanism,
    fault_return: bool,
) -> Result<Vec<Attached>, ProgramError> {
    let mut attached = Vec::new();
    for wanted in hook.programs(mechanism, fault_return) {
        match attach(object, hook, wanted) {
            Ok(one) => attached.push(one),
            Err(error) => {
                // The first refusal is what matters.
                let _ = detach_all(object, attached);
                return Err(error);
            }
        }
    }
    Ok(attached)
}

/// Detaches programs, the last one first: an entry is never without its return.
///
/// # Errors
/// What the kernel says of the first that stays; the others are tried all the same.
pub fn detach_all(object: &mut Ebpf, attached: Vec<Attached>) -> Result<(), ProgramError> {
    let mut result = Ok(());
    for Attached { name, link } in attached.into_iter().rev() {
        let detached = match (program_of(object, name)?, link) {
            (Program::FEntry(program), Link::FEntry(link)) => program.detach(link),
            (Program::FExit(program), Link::FExit(link)) => program.detach(link),
            (Program::KProbe(program), Link::KProbe(link)) => program.detach(link),
            (Program::BtfTracePoint(program), Link::BtfTracePoint(link)) => program.detach(link),
            (Program::RawTracePoint(program), Link::RawTracePoint(link)) => program.detach(link),
            _ => Err(ProgramError::UnexpectedProgramType),
        };
        result = result.and(detached);
    }
    result
}
