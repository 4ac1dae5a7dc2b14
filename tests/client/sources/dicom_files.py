"""DICOM exams of a few small slices, with a name in every place where real files hold one."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

T1: dict[str, object] = {"RepetitionTime": 500, "EchoTime": 12}
T2: dict[str, object] = {"RepetitionTime": 4000, "EchoTime": 98}
SERIES: dict[int, tuple[str, dict[str, object]]] = {
    2: ("T1 ax", T1),
    3: ("T2 ax", T2),
    4: ("T1 ax DOE", T1 | {"ContrastBolusAgent": "Gadovist for DOE"}),
    5: ("FLAIR ax", {"RepetitionTime": 9000, "EchoTime": 120, "InversionTime": 2500}),
}


def write_exam(folder: Path, patient_id: str, *, study: str) -> None:
    """T1, T2, contrast-enhanced T1 and FLAIR of one exam."""
    for number, words in SERIES.items():
        write_series(folder / "DOE JANE" / study, patient_id, study, number, words)


def write_series(folder: Path, patient_id: str, study: str, number: int, words: tuple[str, dict[str, object]]) -> None:
    """Twelve slices with a name in every place where real files hold one."""
    description, parameters = words
    uid = generate_uid()
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(12):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, generate_uid()
        image.PatientName, image.PatientID, image.PatientBirthDate = "DOE^JANE", patient_id, "19560307"
        image.StudyDate = image.SeriesDate = image.AcquisitionDate = image.ContentDate = "20210914"
        image.StudyTime = image.SeriesTime = image.AcquisitionTime = image.ContentTime = "101512"
        image.AccessionNumber, image.InstitutionName, image.ReferringPhysicianName = "ACC778", "Sankt Anna", "Dr House"
        image.StudyDescription, image.ImageComments, image.StudyID = "head of DOE", "DOE was nervous", "DOE"
        image.Modality, image.Manufacturer, image.ManufacturerModelName = "MR", "SIEMENS", "Avanto"
        image.MagneticFieldStrength, image.DeviceSerialNumber, image.StationName = 1.5, "PRIVATENAME", "DOE"
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, uid, uid
        image.SeriesNumber, image.InstanceNumber, image.SeriesDescription = number, index + 1, description
        image.ProtocolName, image.PatientPosition = "protocol of Dr House", "HFS"
        image.ImageType, image.ScanningSequence, image.SequenceVariant = ["ORIGINAL", "PRIMARY", "M"], "SE", "NONE"
        image.ScanOptions, image.MRAcquisitionType, image.FlipAngle = "", "2D", 90
        image.ImageOrientationPatient, image.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-16, -16, 5.0 * index]
        image.PixelSpacing, image.SliceThickness, image.SpacingBetweenSlices = [2, 2], 5, 5
        image.Rows, image.Columns, image.SamplesPerPixel = 16, 16, 1
        image.PhotometricInterpretation, image.BitsAllocated, image.BitsStored = "MONOCHROME2", 16, 16
        image.HighBit, image.PixelRepresentation = 15, 0
        for name, value in parameters.items():
            setattr(image, name, value)
        block = image.private_block(0x0029, "PRIVATENAME 1.0", create=True)
        block.add_new(0x01, "LO", "PRIVATENAME")
        values = np.arange(256, dtype=np.uint16).reshape(16, 16) + 10 * index + number
        image.PixelData = values.tobytes()
        image.save_as(folder / f"DOE_JANE_{number}_{index}", enforce_file_format=True)
