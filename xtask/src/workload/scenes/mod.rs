//! The scenes.

mod lifetimes;
mod load;
mod memory;
mod protection;
mod sharing;

use anyhow::Result;

use super::Scene;
use super::area::Area;
use super::report::Report;

/// Sets a scene up.
type SetUp = fn() -> Result<Box<dyn Scene>>;

/// Every scene by its name.
pub const SCENES: &[(&str, SetUp)] = &[
    ("seed", memory::seed),
    ("private", memory::private),
    ("shared", memory::shared),
    ("zero-pages", memory::zero_pages),
    ("huge", memory::huge),
    ("shared-file", memory::shared_file),
    ("private-file", memory::private_file),
    ("memfd", memory::memfd),
    ("epochs", memory::epochs),
    ("mprotect", protection::upgrade),
    ("mprotect-shared", protection::upgrade_shared),
    ("mprotect-split", protection::split_and_merge),
    ("fork", sharing::fork),
    ("huge-fork", sharing::huge_fork),
    ("unshare", sharing::unshare),
    ("exec", lifetimes::exec),
    ("vfork", lifetimes::vfork),
    ("reuse", lifetimes::reuse),
    ("threads", load::threads),
    ("hammer", load::hammer),
    ("everything", everything),
    ("demo", demo),
];

/// A scene of one area and one action.
struct Simple<Act> {
    area: Area,
    act: Act,
}

impl<Act: FnMut(&mut Area) -> Result<Vec<Report>>> Scene for Simple<Act> {
    fn areas(&mut self) -> Vec<&mut Area> {
        vec![&mut self.area]
    }

    fn act(&mut self) -> Result<Vec<Report>> {
        (self.act)(&mut self.area)
    }
}

fn simple(area: Area, act: impl FnMut(&mut Area) -> Result<Vec<Report>> + 'static) -> Box<dyn Scene> {
    Box::new(Simple { area, act })
}

/// Several scenes in one process.
struct Several(Vec<Box<dyn Scene>>);

impl Scene for Several {
    fn areas(&mut self) -> Vec<&mut Area> {
        self.0.iter_mut().flat_map(|scene| scene.areas()).collect()
    }

    fn act(&mut self) -> Result<Vec<Report>> {
        let mut children = Vec::new();
        for scene in &mut self.0 {
            children.extend(scene.act()?);
        }
        Ok(children)
    }
}

/// Everything, and then a child that comes and goes: it shares the parent's pages only after all is written.
fn demo() -> Result<Box<dyn Scene>> {
    Ok(Box::new(Several(vec![everything()?, sharing::brief_fork()?])))
}

fn everything() -> Result<Box<dyn Scene>> {
    let scenes: [SetUp; 6] = [
        memory::seed,
        memory::private,
        memory::huge,
        memory::shared_file,
        memory::private_file,
        protection::upgrade,
    ];
    let scenes = scenes.iter().map(|set_up| set_up()).collect::<Result<_>>()?;
    Ok(Box::new(Several(scenes)))
}
