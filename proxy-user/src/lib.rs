//! Causeway daemon library.
