//! The room for GPU kernels written in CubeCL. There are none yet: the operation traits do not
//! list `Cube`, and the wrappers in [`kernels`](crate::kernels) send every tensor that is not on
//! the plain CPU backend to its twin in [`naive`](super::naive), which keeps all index tensors on
//! the device and reads nothing back.
