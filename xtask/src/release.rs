//! Packages of the program: wheels, archives, images, and files of package managers. Each has the version of the workspace.

mod archive;
mod binary;
mod changelog;
mod digest;
mod files;
mod image;
mod package;
mod tar;
mod wheel;
mod zip;

pub(crate) use archive::run as archive;
pub(crate) use files::run as files;
pub(crate) use image::run as image;
pub(crate) use package::version;
pub(crate) use wheel::run as wheel;
