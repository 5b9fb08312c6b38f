//! kd-wire
