//! Modules and names.

pub(in crate::commands) mod examine;
pub(in crate::commands) mod image_info;
pub(in crate::commands) mod list_modules;
pub(in crate::commands) mod list_nearest;
pub(in crate::commands) mod reload;
pub(in crate::commands) mod symbol_noise;
pub(in crate::commands) mod symbol_options;
pub(in crate::commands) mod symbol_path;
