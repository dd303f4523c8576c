//! GPU room: empty. The wrappers send tensors of other devices to the twins in [`super::naive`], whose operations burn runs
//! there; kernels of our own take their place here.
