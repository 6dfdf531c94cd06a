use proptest::prelude::*;

use super::*;

fn id(number: u32) -> String {
    format!("batch_{number}")
}

const HOUR_US: u64 = 3_600_000_000;

proptest! {
    #[test]
    fn every_micro_dollar_is_somebodys_whatever_is_claimed_and_when(
        price in 0i64..100_000_000,
        steps in prop::collection::vec((0u64..100_000, 0u64..200_000_000, 0i64..2_000, 0u8..3), 1..60),
    ) {
        let mut bill = Bill::new(MonoMs(0), UsdMicro(price));
        let mut now = 0;
        for (span, engine_us, room, what) in steps {
            now += span;
            match what {
                0 => drop(bill.claim(MonoMs(now), &id(0), engine_us, 1, UsdMicro(i64::MAX))),
                1 => prop_assert!(bill.claim(MonoMs(now), &id(0), engine_us, 2, UsdMicro(room)).cost.0 <= room),
                _ => drop(bill.close_interval(Duration::from_millis(engine_us / 100_000))),
            }
            prop_assert!(bill.adds_up(), "{bill:?}");
        }
        // The sum of many small intervals is the bill of the one long interval.
        bill.accrue(MonoMs(now));
        prop_assert_eq!(bill.billed.0, (i128::from(price) * i128::from(now) / MS_PER_HOUR) as i64);
    }
}

#[test]
fn a_bill_is_the_same_however_many_events_cut_it() {
    // Half of an hour's engine time goes to one batch, a tenth to another, in pieces of 7 ms and of 1 s.
    let mut shares = Vec::new();
    for piece_ms in [7u64, 1_000] {
        let mut bill = Bill::new(MonoMs(0), UsdMicro(340_000));
        let (mut one, mut other) = (0, 0);
        for now in (0..=3_600_000u64).step_by(piece_ms as usize).skip(1) {
            one += bill.claim(MonoMs(now), &id(0), piece_ms * 500, 1, UsdMicro(i64::MAX)).cost.0;
            other += bill.claim(MonoMs(now), &id(1), piece_ms * 100, 1, UsdMicro(i64::MAX)).cost.0;
            bill.close_interval(GRACE);
        }
        shares.push((one, other));
    }
    for (one, other) in shares {
        assert!((one - 170_000).abs() < 1_700 && (other - 34_000).abs() < 340, "{one} {other}");
    }
}

#[test]
fn an_hour_of_work_costs_the_hourly_price_and_no_more_can_be_claimed() {
    let mut bill = Bill::new(MonoMs(0), UsdMicro(340_000));
    assert_eq!(bill.claim(MonoMs(3_600_000), &id(0), HOUR_US, 1, UsdMicro(i64::MAX)).cost, UsdMicro(340_000));
    assert_eq!(bill.claim(MonoMs(3_600_000), &id(0), HOUR_US, 1, UsdMicro(i64::MAX)), Claim::default());
}

#[test]
fn what_a_budget_has_no_room_for_is_shown_and_is_not_idle() {
    let mut bill = Bill::new(MonoMs(0), UsdMicro(3_600_000));
    let claim = bill.claim(MonoMs(1_000), &id(0), 1_000_000, 1, UsdMicro(600));
    assert_eq!(claim, Claim { cost: UsdMicro(600), over: UsdMicro(400) });
    assert_eq!((bill.attributed, bill.over, bill.idle), (UsdMicro(600), UsdMicro(400), UsdMicro::ZERO));
}

#[test]
fn time_is_pending_until_the_workers_have_spoken_and_idle_after_that() {
    let mut bill = Bill::new(MonoMs(0), UsdMicro(3_600_000));
    bill.accrue(MonoMs(10_000));
    assert_eq!(bill.close_interval(Duration::from_secs(4)), UsdMicro(6_000));
    assert_eq!((bill.pending, bill.idle), (UsdMicro(4_000), UsdMicro(6_000)));
    assert_eq!(bill.claim(MonoMs(10_000), &id(0), 4_000_000, 1, UsdMicro(i64::MAX)).cost, UsdMicro(4_000));
    assert_eq!(bill.close_interval(Duration::ZERO), UsdMicro::ZERO);
}

#[test]
fn a_clock_that_goes_back_bills_nothing_twice() {
    let mut bill = Bill::new(MonoMs(10_000), UsdMicro(3_600_000));
    for now in [20_000, 15_000, 20_000] {
        bill.accrue(MonoMs(now));
    }
    assert_eq!(bill.billed, UsdMicro(10_000));
}

#[test]
fn many_small_claims_of_one_payer_lose_nothing_to_rounding() {
    let mut bill = Bill::new(MonoMs(0), UsdMicro(3_600_000));
    // Two and a half micro-dollars each.
    let costs =
        (1..=1_000u64).map(|n| bill.claim(MonoMs(n * 10), "tenant", 2_500, 1, UsdMicro(i64::MAX)).cost);
    assert_eq!(costs.map(|cost| cost.0).sum::<i64>(), 2_500);
}
