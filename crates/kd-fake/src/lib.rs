//! kd-fake
