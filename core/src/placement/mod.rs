//! Placement: policy + measured inventory + current plan -> next plan. Pure.
