//! kd-shell
